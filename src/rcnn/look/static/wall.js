// The wall: tiles of the pictures that are in sight, and of no others.

import { ask } from "./api.js";
import { element } from "./dom.js";

const WIDTH = 240, HEIGHT = 224, AHEAD = 2;
const wall = document.getElementById("wall");
const list = wall.querySelector("ul");

export class Wall {
  /** @param run part of the addresses of thumbnails  @param open called with the place of a picture */
  constructor(run, open) {
    this.run = run;
    this.open = open;
    this.places = [];
    this.score = 0.5;
    this.shown = new Map(); // index -> tile
    addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.draw(true)).observe(wall);
  }

  /** Show these pictures, with counts at this score. */
  show(places, score) {
    const same = places.length === this.places.length && places.every((place, index) => place === this.places[index]);
    this.places = places;
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
    if (!width) return; // the page of one picture is shown
    const columns = Math.max(1, Math.floor(width / WIDTH));
    wall.style.height = `${Math.ceil(this.places.length / columns) * HEIGHT}px`;
    const top = Math.max(0, -wall.getBoundingClientRect().top);
    const first = Math.max(0, Math.floor(top / HEIGHT) - AHEAD) * columns;
    const last = Math.min(this.places.length, (Math.ceil((top + innerHeight) / HEIGHT) + AHEAD) * columns);
    for (const [index, tile] of this.shown) {
      if (index < first || index >= last) {
        tile.remove();
        this.shown.delete(index);
      }
    }
    const added = [];
    for (let index = first; index < last; index++) {
      let tile = this.shown.get(index);
      if (!tile) {
        tile = this.tile(this.places[index]);
        this.shown.set(index, tile);
        added.push(index);
      } else if (!moved) continue;
      const side = width / columns;
      tile.style.width = `${side}px`;
      tile.style.height = `${HEIGHT}px`;
      tile.style.transform = `translate(${(index % columns) * side}px, ${Math.floor(index / columns) * HEIGHT}px)`;
    }
    if (added.length) {
      const tiles = [...this.shown].sort(([one], [other]) => one - other).map(([, tile]) => tile);
      tiles.forEach((tile, at) => list.children[at] !== tile && list.insertBefore(tile, list.children[at] ?? null));
      clearTimeout(this.waiting);
      this.waiting = setTimeout(() => this.count(), 60);
    }
  }

  tile(place) {
    const image = element("img", { alt: "", src: `/api/pictures/${place}/thumbnail?run=${this.run}` });
    const link = element("a", { href: `/pictures/${place}` }, image, element("span", { class: "name" }, "\u2026"), element("span", { class: "numbers" }, "\u00a0"));
    link.addEventListener("click", (event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      this.open(place);
    });
    const tile = element("li", { class: "tile" }, link);
    tile.dataset.place = place;
    return tile;
  }

  /** Ask for the names and counts of the tiles in sight. */
  async count() {
    const tiles = new Map([...this.shown.values()].map((tile) => [Number(tile.dataset.place), tile]));
    if (!tiles.size || !wall.clientWidth) return;
    const told = await ask("/api/tiles", { places: [...tiles.keys()].slice(0, 500).join(","), score: this.score });
    for (const one of told) {
      const tile = tiles.get(one.place);
      tile.querySelector(".name").textContent = one.name.slice(one.name.lastIndexOf("/") + 1);
      tile.querySelector("a").title = one.name;
      tile.querySelector(".numbers").replaceChildren(...numbers(one));
    }
  }

  /** Scroll to a picture that was looked at. */
  reveal(place) {
    const columns = Math.max(1, Math.floor(wall.clientWidth / WIDTH)), index = this.places.indexOf(place);
    if (index < 0) return;
    const top = wall.getBoundingClientRect().top + scrollY + Math.floor(index / columns) * HEIGHT;
    if (top < scrollY || top + HEIGHT > scrollY + innerHeight) scrollTo(0, top - innerHeight / 3);
    this.draw(true);
    this.shown.get(index)?.querySelector("a").focus({ preventScroll: true });
  }
}

function numbers(one) {
  if (one.right !== undefined) {
    const kinds = ["right", "wrong", "lost"].filter((kind) => one[kind] || kind === "right");
    return kinds.flatMap((kind, at) => [at ? ", " : "", element("b", { class: kind }, `${one[kind]} ${kind}`)]);
  }
  const words = [];
  if (one.objects !== null) words.push(`${one.objects} ${one.objects === 1 ? "object" : "objects"}`);
  if (one.detections !== undefined) words.push(`${one.detections} ${one.detections === 1 ? "detection" : "detections"}`);
  return [words.join(", ") || "\u00a0"];
}
