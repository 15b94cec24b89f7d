// One picture large: truth and detections as layers, sliders for score and NMS, zoom.

import { ask } from "./api.js";
import { drawn, element, settle, slider } from "./dom.js";
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
    this.made = new Map(); // what is shown of each box, for the next time
    this.moved = moved;
    for (const [id, factor] of [["closer", 0.7], ["farther", 1 / 0.7]]) {
      get(id).addEventListener("click", () => this.stage.zoom(factor));
    }
    get("fit").addEventListener("click", () => this.stage.fit());
    this.sliders();
  }

  sliders() {
    const { state } = this, made = [];
    if (state.detects) {
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
  async show(place, score) {
    this.score = score;
    this.sliders();
    this.place = place;
    const { nms } = this, picture = await ask(`/api/pictures/${place}`, { nms });
    if (this.place !== place) return; // another one was opened meanwhile
    this.picture = picture;
    get("name").textContent = picture.name;
    get("fault").textContent = picture.fault;
    get("fault").hidden = !picture.fault;
    document.title = `${picture.name}: rcnn look`;
    this.stage.picture(`/api/pictures/${place}/image?run=${this.state.run}`, picture.width ?? 320, picture.height ?? 240, picture.name);
    this.draw();
    if (this.nms !== nms) this.suppress(this.nms);
  }

  /** Ask for the detections at another threshold of NMS: one question at a time, so that they follow a slider that is dragged. */
  async suppress(nms) {
    this.nms = nms;
    if (this.asking) return; // after its answer comes the next question
    this.asking = true;
    try {
      for (let asked = null; asked !== this.nms && this.place !== undefined; ) {
        const { place } = this;
        asked = this.nms;
        const picture = await ask(`/api/pictures/${place}`, { nms: asked });
        if (this.place !== place) continue; // another one was opened meanwhile
        this.picture = picture;
        this.draw();
      }
    } finally {
      this.asking = false;
    }
  }

  toggle(layers) {
    const there = layers.filter((layer) => layer in this.boxes);
    const off = there.every((layer) => this.hidden.has(layer));
    there.forEach((layer) => (off ? this.hidden.delete(layer) : this.hidden.add(layer)));
    this.draw();
  }

  /** What is right, wrong and lost at the score: a lower-scored detection never changes the match of a better one. */
  sort() {
    const { truth, detections } = this.picture, boxes = {};
    const sure = (detections ?? []).filter((one) => one.score >= Math.fround(this.score));
    if (truth && detections) {
      const counted = sure.filter((one) => !one.ignored), found = new Set(counted.map((one) => one.object));
      boxes.right = counted.filter((one) => one.object >= 0);
      boxes.wrong = counted.filter((one) => one.object < 0);
      boxes.lost = truth.map((one, object) => ({ ...one, object })).filter((one) => !one.ignore && !found.has(one.object));
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
      for (const one of this.hidden.has(layer) ? [] : this.boxes[layer] ?? []) {
        let name = JSON.stringify([this.place, layer, one]);
        while (made.has(name)) name += " again";
        const { row, group, tag } = this.made.get(name) ?? this.make(layer, one);
        made.set(name, { row, group, tag });
        shown.push(group);
        tags.push([["wrong", "lost", "plain", "right", "truth"].indexOf(layer), tag]);
        rows.push([["wrong", "lost", "right", "plain", "truth"].indexOf(layer), row]);
      }
    }
    this.made = made;
    for (const list of [rows, tags]) list.sort(([one], [other]) => one - other);
    this.stage.layers(shown, tags.map(([, tag]) => tag));
    settle(get("boxes").tBodies[0], rows.map(([, row]) => row));
    get("boxes").hidden = !rows.length;
    this.legend();
  }

  /** What shows a box: its row of the table, its frame and its tag. */
  make(layer, one) {
    const row = this.row(layer, one), group = this.box(layer, one);
    const point = (on) => [row, ...group.querySelectorAll("rect")].forEach((part) => part.classList.toggle("pointed", on));
    for (const part of [row, group]) {
      part.addEventListener("pointerenter", () => point(true));
      part.addEventListener("pointerleave", () => point(false));
    }
    return { row, group, tag: this.tag(layer, one) };
  }

  row(layer, one) {
    const score = one.score === undefined ? "\u2013" : one.score.toFixed(3);
    const what = layer === "wrong" ? KINDS[one.kind] : layer === "plain" ? "" : one.ignore ? "truth, ignored" : layer;
    const why = layer === "lost" && this.state.nms !== null; // the stages can be followed
    const told = why ? element("a", { href: `/inside/${this.place}#show=objects&object=${one.object}` }, "lost: why?") : what;
    return element("tr", {}, element("th", { scope: "row" }, this.state.names[one.label]), element("td", {}, score), element("td", {}, told));
  }

  box(layer, one) {
    const [left, top, right, bottom] = one.box;
    const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
    const colour = layer === "plain" ? ` kind-${one.label % 12}` : "";
    return drawn("g", {}, drawn("rect", { ...place, class: "under" }), drawn("rect", { ...place, class: layer + colour }));
  }

  tag(layer, one) {
    const score = one.score === undefined ? "" : ` ${one.score.toFixed(2)}`;
    const word = { wrong: "wrong: ", lost: "lost: " }[layer] ?? "";
    const [x, y] = one.box;
    return drawn("text", { "data-x": x, "data-y": y }, `${word}${this.state.names[one.label].slice(0, 40)}${score}`);
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
