// One picture in large: truth and detections as layers, sliders for score and NMS, zoom.

import { ask } from "./api.js";
import { drawn, element, frame, settle, slider } from "./dom.js";
import { Stage } from "./stage.js";

const LAYERS = { right: "right", wrong: "wrong", lost: "lost", truth: "truth", plain: "detections" };
const KINDS = { duplicate: "found twice", bad_box: "badly placed", wrong_class: "another class", background: "nothing there" };
const get = (id) => document.getElementById(id);

export class Large {
  /** @param state of the server  @param moved called with the score that was chosen */
  constructor(state, moved) {
    this.state = state;
    this.hidden = new Set(["truth"]);
    this.score = state.threshold;
    this.nms = state.nms;
    this.stage = new Stage(get("stage"));
    this.made = new Map(); // the elements of each box, to be used again
    this.moved = moved;
    for (const [id, factor] of [["closer", 0.7], ["farther", 1 / 0.7]]) {
      get(id).addEventListener("click", () => this.stage.zoom(factor));
    }
    get("fit").addEventListener("click", () => this.stage.fit());
    this.sliders();
  }

  sliders() {
    const { state } = this, made = [];
    if (state.predicts) {
      made.push(slider("score from", state.least, 1, 0.001, Math.max(state.least, this.score), (value) => {
        this.score = value;
        this.draw();
        this.moved(value);
      }));
    }
    if (state.nms !== null) made.push(slider("IoU of NMS", 0, 1, 0.01, this.nms, (value) => this.suppress(value)));
    get("sliders").replaceChildren(...made);
  }

  /** Open a picture. */
  async show(index, score) {
    this.score = score;
    this.sliders();
    this.index = index;
    const { nms } = this, picture = await ask(`/api/pictures/${index}`, { nms });
    if (this.index !== index) return; // another picture was opened meanwhile
    this.picture = picture;
    get("name").textContent = picture.name;
    get("fault").textContent = picture.fault;
    get("fault").hidden = !picture.fault;
    document.title = `${picture.name}: rcnn look`;
    this.stage.picture(`/api/pictures/${index}/image?run=${this.state.run}`, picture.width ?? 320, picture.height ?? 240, picture.name);
    this.draw();
    if (this.nms !== nms) this.suppress(this.nms);
  }

  /** Request the detections at another threshold of NMS, one request at a time, so that they follow a dragged slider. */
  async suppress(nms) {
    this.nms = nms;
    if (this.requesting) return; // the loop below sends the next request
    this.requesting = true;
    try {
      for (let requested = null; requested !== this.nms && this.index !== undefined; ) {
        const { index } = this;
        requested = this.nms;
        const picture = await ask(`/api/pictures/${index}`, { nms: requested });
        if (this.index !== index) continue; // another picture was opened meanwhile
        this.picture = picture;
        this.draw();
      }
    } finally {
      this.requesting = false;
    }
  }

  toggle(layers) {
    const present = layers.filter((layer) => layer in this.boxes);
    const off = present.every((layer) => this.hidden.has(layer));
    present.forEach((layer) => (off ? this.hidden.delete(layer) : this.hidden.add(layer)));
    this.draw();
  }

  /** Right, wrong and lost boxes at the score; a detection of a lower score never changes the match of another. */
  sort() {
    const { truth, detections } = this.picture, boxes = {};
    const sure = (detections ?? []).filter((entry) => entry.score >= Math.fround(this.score));
    if (truth && detections) {
      const counted = sure.filter((entry) => !entry.ignored), found = new Set(counted.map((entry) => entry.object));
      boxes.right = counted.filter((entry) => entry.object >= 0);
      boxes.wrong = counted.filter((entry) => entry.object < 0);
      boxes.lost = truth.map((entry, object) => ({ ...entry, object })).filter((entry) => !entry.ignore && !found.has(entry.object));
    } else if (detections) boxes.plain = sure;
    if (truth) boxes.truth = truth;
    return boxes;
  }

  draw() {
    if (!this.picture) return;
    this.boxes = this.sort();
    if (!this.picture.detections) this.hidden.delete("truth");
    const shown = [], rows = [], tags = [], made = new Map();
    for (const layer of ["truth", "right", "plain", "lost", "wrong"]) {
      for (const entry of this.hidden.has(layer) ? [] : this.boxes[layer] ?? []) {
        let name = JSON.stringify([this.index, layer, entry]);
        while (made.has(name)) name += " again";
        const { row, group, tag } = this.made.get(name) ?? this.make(layer, entry);
        made.set(name, { row, group, tag });
        shown.push(group);
        tags.push([["wrong", "lost", "plain", "right", "truth"].indexOf(layer), tag]);
        rows.push([["wrong", "lost", "right", "plain", "truth"].indexOf(layer), row]);
      }
    }
    this.made = made;
    for (const list of [rows, tags]) list.sort(([entry], [other]) => entry - other);
    this.stage.layers(shown, tags.map(([, tag]) => tag));
    settle(get("boxes").tBodies[0], rows.map(([, row]) => row));
    get("boxes").hidden = !rows.length;
    this.legend();
  }

  /** The elements of a box: its row of the table, its frame and its tag. */
  make(layer, entry) {
    const row = this.row(layer, entry), group = frame(entry.box, layer + (layer === "plain" ? ` kind-${entry.label % 12}` : ""));
    const point = (on) => [row, ...group.querySelectorAll("rect")].forEach((part) => part.classList.toggle("pointed", on));
    for (const part of [row, group]) {
      part.addEventListener("pointerenter", () => point(true));
      part.addEventListener("pointerleave", () => point(false));
    }
    return { row, group, tag: this.tag(layer, entry) };
  }

  row(layer, entry) {
    const score = entry.score === undefined ? "\u2013" : entry.score.toFixed(3);
    const text = layer === "wrong" ? KINDS[entry.kind] : layer === "plain" ? "" : entry.ignore ? "truth, ignored" : layer;
    const why = layer === "lost" && this.state.nms !== null; // the page "Explain" has the steps
    const result = why ? element("a", { href: `/explain/${this.index}#show=objects&object=${entry.object}` }, "lost: why?") : text;
    return element("tr", {}, element("th", { scope: "row" }, this.state.names[entry.label]), element("td", {}, score), element("td", {}, result));
  }

  tag(layer, entry) {
    const score = entry.score === undefined ? "" : ` ${entry.score.toFixed(2)}`;
    const word = { wrong: "wrong: ", lost: "lost: " }[layer] ?? "";
    const [x, y] = entry.box;
    return drawn("text", { "data-x": x, "data-y": y }, `${word}${this.state.names[entry.label].slice(0, 40)}${score}`);
  }

  legend() {
    const labels = Object.entries(LAYERS).filter(([layer]) => layer in this.boxes).map(([layer, name]) => {
      const input = element("input", { type: "checkbox", checked: !this.hidden.has(layer) });
      input.addEventListener("change", () => this.toggle([layer]));
      const key = element("span", { class: `key ${layer}`, "aria-hidden": "true" });
      return element("label", {}, input, key, element("span", {}, name), element("span", { class: "number" }, String(this.boxes[layer].length)));
    });
    const focus = [...get("layers").querySelectorAll("input")].indexOf(document.activeElement);
    get("layers").replaceChildren(...labels);
    if (focus >= 0) get("layers").querySelectorAll("input")[focus]?.focus();
  }
}
