"""Find the images that a file of labels names, in the folders where people keep them."""

import os
from collections.abc import Iterable, Sequence
from functools import cache

from rcnn.data.formats.draft import Draft, Layout, relative_name
from rcnn.data.formats.folders import FOREIGN_ADDRESS, Folder, cached_folders, ends_of
from rcnn.images.storage import Location, is_address, name_below, normal, shown

IMAGE_FOLDERS = (".", "images", "Images", "imgs", "JPEGImages")
"""Names of folders of images, `.` for that of the labels themselves."""


def usual_places(folder: Location, root: Location) -> list[Location]:
    """Return the existing folders in which images of a file of labels in `folder` may be."""
    places = [place / inner for place in dict.fromkeys((folder, root)) for inner in IMAGE_FOLDERS]
    places += [folder.parent / inner for inner in IMAGE_FOLDERS[1:]]
    return [place for place in dict.fromkeys(map(normal, places)) if place.is_dir()]


class NamedImages:
    """Finds images by the paths or names that a file of labels contains.

    An image is looked for by its path below each place, then by the ends of an absolute path of another machine, then
    by its file name alone.

    Args:
        layout: the data set.
        places: folders to look in.
    """

    def __init__(self, layout: Layout, places: Iterable[Location]) -> None:
        self.places = list(places)
        self._root = layout.root
        self._folders, self._folder = cached_folders(layout.home or layout.root), cache(self._find_folder)
        self._by_file_name: dict[Location, str] = {}

    def find(self, draft: Draft, where: str, *names: str) -> None:
        """Set the path, folder and name of a draft, or add a fault at `where` if its image is missing.

        Args:
            draft: the image.
            where: place of the name.
            names: the name of the image; if there are several, the first one that exists. Slashes of either kind.
        """
        shown_name = shown(names[0]) if is_address(names[0]) else names[0]
        cleaned = [name_below(name, self._root) for name in names]
        fits = self._match([inner for name in cleaned for inner in (name, *map(str, ends_of(name)))])
        if fits is None:
            fits = self._match([name.rsplit("/", 1)[-1] for name in cleaned])
            if fits and self._by_file_name.setdefault(fits[0].path / fits[2][0], names[0]) != names[0]:
                fits = None  # two paths with the same file name, one of which is missing
        if fits is None:
            base = cleaned[0].rsplit("/", 1)[-1]
            near = next(filter(None, (self._folders(place).near(base) for place in self.places)), "")
            tried = ", ".join(map(str, self.places)) + near
            missing = FOREIGN_ADDRESS if is_address(names[0]) else f"is missing; looked in {tried}"
            draft.fault(where, f"image `{shown_name:.300}` {missing}")
            return
        folder, from_root, found, base = fits
        if len(found) > 1:
            several = ", ".join(found)
            draft.fault(where, f"image `{shown_name:.300}` is missing; several differ from it in case: {several}")
            return
        if found[0] != base:
            draft.fault(where, f"names differ in case, taken to be the same: {base}, {found[0]}", "mendable")
        draft.path, draft.folder = folder.path / found[0], folder
        draft.name = found[0] if from_root == "." else f"{from_root}/{found[0]}"

    def _match(self, names: Sequence[str]) -> tuple[Folder, str, list[str], str] | None:
        """Return where one of some relative paths exists: its folder, the path of that from the root, and its files.

        A file of exactly this name comes before one whose name differs in case or Unicode form.
        """
        other: tuple[Folder, str, list[str], str] | None = None
        for name in names:
            above, base = os.path.split(os.path.normpath(name))
            for place in self.places:
                folder, from_root = self._folder(place, above)
                found = folder.find(base)
                if base in found:
                    self.places.sort(key=lambda known: known != place)  # look for the next image here first
                    return folder, from_root, found, base
                if found and other is None:
                    other = folder, from_root, found, base
        return other

    def _find_folder(self, place: Location, above: str) -> tuple[Folder, str]:
        """Return a folder below a place, and its path from the root; cached, as every image in it needs both."""
        path = normal(place / above)
        return self._folders(path), "." if path == normal(self._root) else relative_name(path, self._root)
