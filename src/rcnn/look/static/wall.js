// The wall: tiles of those pictures that are in sight.

import { ask } from "./api.js";
import { element } from "./dom.js";

const WIDTH = 240, HEIGHT = 224, AHEAD = 2;
const wall = document.getElementById("wall");
const list = wall.querySelector("ul");

export class Wall {
  /** @param run part of the addresses of thumbnails  @param open called with the index of a picture */
  constructor(run, open) {
    this.run = run;
    this.open = open;
    this.indices = [];
    this.score = 0.5;
    this.shown = new Map(); // position on the wall -> tile
    addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw(true)).observe(wall);
  }

  /** Show these pictures, with counts at this score. */
  show(indices, score) {
    const same = indices.length === this.indices.length && indices.every((index, position) => index === this.indices[position]);
    this.indices = indices;
    this.score = score;
    if (!same) {
      list.replaceChildren();
      this.shown.clear();
    }
    this.draw(true);
    this.count();
  }

  draw(moved = false) {
    const width = wall.clientWidth;
    if (!width) return; // the page of entry picture is shown
    const columns = Math.max(1, Math.floor(width / WIDTH));
    wall.style.height = `${Math.ceil(this.indices.length / columns) * HEIGHT}px`;
    const top = Math.max(0, -wall.getBoundingClientRect().top);
    const first = Math.max(0, Math.floor(top / HEIGHT) - AHEAD) * columns;
    const last = Math.min(this.indices.length, (Math.ceil((top + innerHeight) / HEIGHT) + AHEAD) * columns);
    for (const [position, tile] of this.shown) {
      if (position < first || position >= last) {
        tile.remove();
        this.shown.delete(position);
      }
    }
    const added = [];
    for (let position = first; position < last; position++) {
      let tile = this.shown.get(position);
      if (!tile) {
        tile = this.tile(this.indices[position]);
        this.shown.set(position, tile);
        added.push(position);
      } else if (!moved) continue;
      const side = width / columns;
      tile.style.width = `${side}px`;
      tile.style.height = `${HEIGHT}px`;
      tile.style.transform = `translate(${(position % columns) * side}px, ${Math.floor(position / columns) * HEIGHT}px)`;
    }
    if (added.length) {
      const tiles = [...this.shown].sort(([entry], [other]) => entry - other).map(([, tile]) => tile);
      tiles.forEach((tile, at) => list.children[at] !== tile && list.insertBefore(tile, list.children[at] ?? null));
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.count(), 60);
    }
  }

  tile(index) {
    const image = element("img", { alt: "", src: `/api/pictures/${index}/thumbnail?run=${this.run}` });
    const link = element("a", { href: `/pictures/${index}` }, image, element("span", { class: "name" }, "\u2026"), element("span", { class: "numbers" }, "\u00a0"));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open(index);
    });
    const tile = element("li", { class: "tile" }, link);
    tile.dataset.index = index;
    return tile;
  }

  /** Request the names and counts of the tiles in sight. */
  async count() {
    const tiles = new Map([...this.shown.values()].map((tile) => [Number(tile.dataset.index), tile]));
    if (!tiles.size || !wall.clientWidth) return;
    const answers = await ask("/api/tiles", { indices: [...tiles.keys()].slice(0, 500).join(","), score: this.score });
    for (const entry of answers) {
      const tile = tiles.get(entry.index);
      tile.querySelector(".name").textContent = entry.name.slice(entry.name.lastIndexOf("/") + 1);
      tile.querySelector("a").title = entry.name;
      tile.querySelector(".numbers").replaceChildren(...numbers(entry));
    }
  }

  /** Scroll to a picture that was open. */
  reveal(picture) {
    const columns = Math.max(1, Math.floor(wall.clientWidth / WIDTH)), position = this.indices.indexOf(picture);
    if (position < 0) return;
    const top = wall.getBoundingClientRect().top + scrollY + Math.floor(position / columns) * HEIGHT;
    if (top < scrollY || top + HEIGHT > scrollY + innerHeight) scrollTo(0, top - innerHeight / 3);
    this.draw(true);
    this.shown.get(position)?.querySelector("a").focus({ preventScroll: true });
  }
}

function numbers(entry) {
  if (entry.right !== undefined) {
    const kinds = ["right", "wrong", "lost"].filter((kind) => entry[kind] || kind === "right");
    return kinds.flatMap((kind, at) => [at ? ", " : "", element("b", { class: kind }, `${entry[kind]} ${kind}`)]);
  }
  const words = [];
  if (entry.objects !== null) words.push(`${entry.objects} ${entry.objects === 1 ? "object" : "objects"}`);
  if (entry.detections !== undefined) words.push(`${entry.detections} ${entry.detections === 1 ? "detection" : "detections"}`);
  return [words.join(", ") || "\u00a0"];
}
