"""The run that the processes of one `torchrun` train: after a restart, the new processes continue it.

`torchrun` restarts all processes with the same command, which would start a second run. So process 0 records which run
folder belongs to torchrun's run id. The record is a file in the folder of runs, because process 0 may be on another
machine after a restart, and the machines share that folder.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from rich.console import Console

from rcnn.config import Settings, changed_keys, dump, explain, shorten, validate
from rcnn.config.files import MB, read_text
from rcnn.errors import SettingsError, printable
from rcnn.training.checkpoint import latest
from rcnn.training.configure import MAY_CHANGE, continued_settings
from rcnn.training.distributed import Distributed
from rcnn.training.init import Start
from rcnn.training.run_folder import RunFolder
from rcnn.training.stages import Splits
from rcnn.training.start import prepare_run
from rcnn.weights.file import atomic_write

RECORDS = ".torchrun"
"""Folder of the records, in the folder of runs."""
NO_ID = "none"
"""The id that torchrun uses by default with several machines. Others may use it for another run at the same time."""
MAX_SHOWN = 5
"""Maximum number of different settings in a message."""


class RunRecord(BaseModel):
    """What is known about the run of an id.

    Attributes:
        id: torchrun's id of the run, as text for messages.
        folder: name of the run folder.
        name: name of the run that the user has chosen, if any.
        settings: the settings that the user has chosen.
        finished: True if the run has been trained to its end.
    """

    id: str
    folder: str
    name: str | None
    settings: dict[str, Any]
    finished: bool


class Elastic(NamedTuple):
    """The id of this process's torchrun, and where the run of this id is recorded.

    Attributes:
        id: `TORCHELASTIC_RUN_ID`.
        restarts: number of times that this process was restarted.
        runs: folder of run folders.
    """

    id: str
    restarts: int
    runs: Path

    @classmethod
    def of(cls, environment: Mapping[str, str], runs: Path) -> "Elastic | None":
        """Return torchrun's id in the environment of a process. None: without torchrun, or if it can't restart.

        Raises:
            SettingsError: torchrun may restart the processes and has no id for the run.
        """
        if "TORCHELASTIC_RUN_ID" not in environment:
            return None
        restarts = int(environment.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if environment["TORCHELASTIC_RUN_ID"] != NO_ID:
            return cls(environment["TORCHELASTIC_RUN_ID"], restarts, runs)
        if restarts or int(environment.get("TORCHELASTIC_MAX_RESTARTS", "0")):
            raise SettingsError(
                f"torchrun may restart this training (--max-restarts), but its id is `{NO_ID}`, the default, which any "
                "other training may have too, so that a restart could not find its run. Give torchrun an id of your "
                "own, the same on all machines: --rdzv-id NAME"
            )
        return None

    @property
    def file(self) -> Path:
        """The record. An id may hold any characters, so that the name of the file is its digest."""
        digest = hashlib.blake2b(os.fsencode(self.id), digest_size=16).hexdigest()
        return self.runs / RECORDS / f"{digest}.json"

    def find(self, settings: Settings, name: str | None, distributed: Distributed) -> RunFolder | None:
        """Return the folder of the run that this training continues; None: it is a new one.

        All processes call this. Process 0 reads the record.

        Args:
            settings: settings that the user has chosen.
            name: name of the run that the user has chosen, if any.
            distributed: the processes.

        Raises:
            SettingsError: the run of the id has other settings, or its record is damaged, or its folder is missing. The
                message says what to do.
        """
        restarted = any(distributed.gather(self.restarts))
        found, refusal = None, None
        if distributed.writer:
            try:
                found = self._find(settings, name, restarted)
            except SettingsError as error:
                refusal = str(error)
        found, refusal = distributed.share((found, refusal))
        if refusal is not None:
            raise SettingsError(refusal)
        return None if found is None else RunFolder(found)

    def _find(self, settings: Settings, name: str | None, restarted: bool) -> Path | None:
        record = self._read()
        if record is None or (record.finished and not restarted):
            return None
        folder = self.runs / record.folder
        what = f"torchrun's run id {shorten(record.id)} belongs to {folder}"
        if not folder.is_dir():
            raise SettingsError(
                f"{what} ({self.file}), which does not exist any more. Restore it, or delete {self.file} to start anew"
            )
        if (different := self._differences(record, settings, name)) and record.finished:
            return None
        if different:
            raise SettingsError(
                f"{what}, which is not finished and has other settings: {different}. For a new run give another "
                f"--rdzv-id; to continue that one, repeat its command, or: rcnn train --resume {folder}"
            )
        return folder

    def _differences(self, record: RunRecord, settings: Settings, name: str | None) -> str:
        """Return what differs between the run of a record and this one; an empty text if nothing does."""
        old = validate(record.settings)
        keys = [key for key in changed_keys(old, settings, list(Settings.model_fields)) if key not in MAY_CHANGE]
        before, after = dump(old), dump(settings)

        def value(tree: Mapping[str, Any], key: str) -> str:
            section, _, entry = key.partition(".")
            return shorten(str(tree[section][entry]))

        texts = [f"{key}={value(before, key)}, here {value(after, key)}" for key in keys[:MAX_SHOWN]]
        texts += [f"and {len(keys) - MAX_SHOWN} more"] if len(keys) > MAX_SHOWN else []
        if record.name != name:
            before_name, after_name = (f"--name {given}" if given else "no --name" for given in (record.name, name))
            texts.insert(0, f"{before_name}, here {after_name}")
        return "; ".join(texts)

    def _read(self) -> RunRecord | None:
        """Return the record, or None if there is none.

        Raises:
            SettingsError: it is damaged.
        """
        try:
            record = RunRecord.model_validate(json.loads(read_text(self.file, MB)))
            if Path(record.folder).name != record.folder or not record.folder.rpartition("-")[2].isdecimal():
                raise ValueError(f"{shorten(record.folder)} is not the name of a run folder")
            validate(record.settings)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            reason = "; ".join(str(explain(error) if isinstance(error, ValidationError) else error).splitlines())
            raise SettingsError(
                f"{self.file}: the record of the run that torchrun's run id {shorten(printable(self.id))} belongs to "
                f"is damaged: {reason}. Delete it to start a new run; a run is continued with: rcnn train --resume RUN"
            ) from None
        return record

    def write(self, folder: RunFolder, settings: Settings, name: str | None, *, finished: bool = False) -> None:
        """Record the run of the id; arguments as for `find`. Only process 0 calls this."""
        record = RunRecord(
            id=printable(self.id), folder=folder.path.name, name=name, settings=dump(settings), finished=finished
        )
        self.file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self.file, record.model_dump_json(indent=2).encode())


@contextmanager
def open_run(
    settings: Settings,
    splits: Splits,
    distributed: Distributed,
    console: Console | None,
    runs: Path,
    name: str | None,
    elastic: Elastic | None,
) -> Iterator[tuple[Settings, Start | None, RunFolder]]:
    """Own the folder of a new run in a block, or that of the run that was begun by the same torchrun.

    A run that torchrun has restarted before its first checkpoint begins anew in its folder.

    Args:
        settings: settings that the user has chosen.
        splits: training images and validation images.
        distributed: processes that train together.
        console: console that shows the progress. None: no progress is shown.
        runs: folder of run folders.
        name: name of the run. None: the name of the folder of its data, even if `data.path` is a file or folder in it.
        elastic: the id of torchrun. None: this is a new run.

    Yields:
        The settings of the run, adapted to the data and the weights; its first model, or None if it is to be resumed;
        and its folder.

    Raises:
        SettingsError: as for `Elastic.find`, or another training owns the folder.
    """
    begun = elastic.find(settings, name, distributed) if elastic else None

    def make(default: str) -> RunFolder:
        if begun is not None:
            begun.cut_logs({})
            return begun
        folder = RunFolder.create(runs, name or default)
        if elastic:
            elastic.write(folder, settings, name)
        return folder

    with ExitStack() as stack:
        if begun is not None:
            stack.enter_context(begun.owned(distributed))
        if begun is not None and distributed.share(latest(begun.checkpoints) is not None):
            folder = begun
            yield continued_settings(folder, settings), None, folder
        else:
            adapted, start, folder = prepare_run(settings, splits, distributed, console, make)
            if begun is None:
                stack.enter_context(folder.owned(distributed))
            yield adapted, start, folder
        if elastic and distributed.writer:
            elastic.write(folder, settings, name, finished=True)
