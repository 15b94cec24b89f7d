// A picture that is zoomed by its view box: wheel, buttons, keys, and dragging. `pointed` and `picked`, if set, are
// called with a point of the picture.

import { drawn, settle } from "./dom.js";

export class Stage {
  constructor(parent) {
    this.parent = parent;
    this.image = drawn("image", { preserveAspectRatio: "none" });
    this.boxes = drawn("g");
    this.tags = drawn("g");
    this.svg = drawn("svg", { role: "img" }, this.image, this.boxes, this.tags);
    parent.append(this.svg);
    parent.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 0.85 : 1 / 0.85, this.at(event));
    }, { passive: false });
    parent.addEventListener("pointerdown", (event) => {
      this.held = [event.clientX, event.clientY];
      this.still = true;
      parent.setPointerCapture(event.pointerId);
      parent.classList.add("held");
    });
    parent.addEventListener("pointermove", (event) => (this.held ? this.drag(event) : this.pointed?.(...this.at(event))));
    parent.addEventListener("pointerup", (event) => this.still && this.picked?.(...this.at(event)));
    for (const end of ["pointerup", "pointercancel"]) {
      parent.addEventListener(end, () => {
        this.held = null;
        parent.classList.remove("held");
      });
    }
    new ResizeObserver(([{ contentRect }]) => {
      this.room = contentRect;
      if (this.view) this.look();
    }).observe(parent);
  }

  /** Show a picture of this size, in pixels of its file. */
  picture(address, width, height, name) {
    this.size = [width, height];
    for (const [key, value] of Object.entries({ href: address, width, height })) this.image.setAttribute(key, value);
    this.svg.setAttribute("aria-label", name);
    this.fit();
  }

  /** Show boxes, and tags on top of them; where tags overlap, the first ones are shown. */
  layers(groups, tags) {
    settle(this.boxes, groups);
    settle(this.tags, tags);
    this.letters();
  }

  /** Show nothing. */
  clear() {
    this.image.removeAttribute("href");
    this.layers([], []);
  }

  fit() {
    this.view = [0, 0, ...this.size];
    this.look();
  }

  /** Show a box and its surroundings. */
  near([left, top, right, bottom]) {
    const [width, height] = this.size, ratio = this.parent.clientWidth / this.parent.clientHeight;
    const down = Math.min(height, Math.max(height / 8, 4 * (bottom - top), (4 * (right - left)) / ratio));
    const across = Math.min(width, down * ratio);
    const start = (middle, side, whole) => Math.max(0, Math.min(whole - side, middle - side / 2));
    this.view = [start((left + right) / 2, across, width), start((top + bottom) / 2, down, height), across, down];
    this.look();
  }

  /** Zoom around a point, such as that of the pointer; by default around the middle. */
  zoom(factor, point = null) {
    const [x, y, width, height] = this.view, [whole] = this.size;
    const times = Math.min(Math.max(width * factor, whole / 60), whole * 1.5) / width;
    const [middle, centre] = point ?? [x + width / 2, y + height / 2];
    this.view = [middle - (middle - x) * times, centre - (centre - y) * times, width * times, height * times];
    this.look();
  }

  /** Handle a key of zooming: + or =, -, 0. Returns whether it was one. */
  zoomKey(key) {
    const actions = { "+": () => this.zoom(0.7), "=": () => this.zoom(0.7), "-": () => this.zoom(1 / 0.7), "0": () => this.fit() };
    actions[key]?.();
    return key in actions;
  }

  /** Move the view by these shares of its size. */
  move(across, down) {
    const [x, y, width, height] = this.view;
    this.view = [x + across * width, y + down * height, width, height];
    this.look();
  }

  get zoomed() {
    return this.view[2] < this.size[0] * 0.999;
  }

  drag(event) {
    const per = 1 / this.svg.getScreenCTM().a;
    const [x, y] = this.held;
    if (this.still && Math.hypot(event.clientX - x, event.clientY - y) < 4) return; // a click, so far
    this.still = false;
    this.view[0] -= (event.clientX - x) * per;
    this.view[1] -= (event.clientY - y) * per;
    this.held = [event.clientX, event.clientY];
    this.look();
  }

  at(event) {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(this.svg.getScreenCTM().inverse());
    return [point.x, point.y];
  }

  look() {
    this.svg.setAttribute("viewBox", this.view.join(" "));
    this.letters();
  }

  /** Tags keep their size on the screen, stay inside the picture, and are hidden where they would overlap. */
  letters() {
    if (!this.room?.width || !this.view) return;
    const scale = Math.min(this.room.width / this.view[2], this.room.height / this.view[3]); // reading sizes from the page would force a layout
    const size = 13 / scale, taken = [];
    for (const tag of this.tags.children) {
      const [left, top] = [Number(tag.dataset.x), Number(tag.dataset.y)];
      const width = tag.textContent.length * size * 0.62;
      const x = Math.max(0, Math.min(left, this.size[0] - width)), base = top < size * 1.2 ? top + size * 1.1 : top - size * 0.35;
      const meets = taken.some(([one, other, end]) => x < end && one < x + width && Math.abs(other - base) < size);
      tag.toggleAttribute("hidden", meets);
      if (meets) continue;
      taken.push([x, base, x + width]);
      for (const [key, value] of [["x", x], ["y", base], ["font-size", size]]) {
        if (tag.getAttribute(key) !== String(value)) tag.setAttribute(key, value);
      }
    }
  }
}
