// Explain: one picture in one of four views. The state is kept in the address after #.

import { element } from "./dom.js";
import { cells, detections, objects, suppression } from "./panels.js";
import { Stage } from "./stage.js";
import { tips, withTip } from "./tips.js";

const VIEWS = { cells: ["Cells", cells], nms: ["NMS", suppression], detections: ["Detections", detections], objects: ["Objects", objects] };
const NUMBERS = ["level", "row", "column", "nms", "of", "detection", "object"];
const COUNTS = {
  anchors: "anchors", objects: "objects", positive: "positive anchors", not_trained: "anchors not trained", negative: "negative anchors", sampled: "sampled",
  sampled_positive: "positive ones among them", before_nms: "boxes before NMS", proposals: "proposals", detections: "detections",
};

export class Explain {
  /** @param root element that holds the stage and the panel */
  constructor(root) {
    this.stage = new Stage(root.querySelector("#stage"));
    this.panel = root.querySelector("#panel");
    this.counts = root.querySelector("#counts");
    this.views = root.querySelector("#views");
    this.views.append(...Object.entries(VIEWS).map(([name, [text]]) => {
      const input = element("input", { type: "radio", name: "show", value: name });
      input.addEventListener("change", () => this.change({ show: name }));
      return element("label", {}, input, element("span", {}, text));
    }));
    this.stage.pointed = (x, y) => this.state?.show === "cells" && !this.pinned && this.cell(x, y);
    this.stage.picked = (x, y) => this.pick(x, y);
    this.stage.parent.addEventListener("pointerleave", () => (this.pinned = this.pinned && this.state?.show === "cells"));
    this.stage.parent.addEventListener("keydown", (event) => this.key(event));
    addEventListener("hashchange", () => this.explanation && this.draw(this.read()));
    tips(document.body);
  }

  /** Show a picture: its numbers, the address of its pixels, its name. */
  show(explanation, address, name) {
    this.explanation = explanation;
    this.pinned = location.hash.includes("row=");
    this.stage.picture(address, explanation.width, explanation.height, name);
    const known = Object.entries(explanation.counts).map(([key, value]) => [COUNTS[key], key, value.toLocaleString("en")]);
    this.counts.replaceChildren(...known.flatMap(([text, tip, value]) => [withTip("dt", tip, text), element("dd", { "data-tip": tip }, value)]));
    this.draw(this.read());
  }

  /** The state in the address, limited to cells and thresholds that exist. */
  read() {
    const { explanation } = this, words = new URLSearchParams(location.hash.slice(1));
    const whole = (key, usual, most) => (words.has(key) ? Math.max(0, Math.min(most, Math.trunc(Number(words.get(key))) || 0)) : usual);
    const first = explanation.objects?.[0] ?? explanation.detections?.[0]; // an object or detection to start from
    const usual = explanation.locate(first?.anchor ?? explanation.proposals[0] ?? 0);
    const level = whole("level", usual.level, explanation.levels.length - 1), { rows, columns } = explanation.levels[level];
    const box = explanation.cellBox(usual), middle = explanation.cellAt(level, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2);
    const nms = Number(words.get("nms"));
    return {
      show: words.get("show") in VIEWS ? words.get("show") : "cells",
      level, row: whole("row", middle.row, rows - 1), column: whole("column", middle.column, columns - 1),
      nms: words.has("nms") && explanation.thresholds.includes(nms) ? nms : explanation.nms,
      of: words.has("of") ? whole("of", -1, explanation.levels.length - 1) : -1,
      detection: words.has("detection") ? whole("detection", null, 1e6) : null,
      object: words.has("object") ? whole("object", null, 1e6) : null,
      map: this.state?.map ?? true, dropped: this.state?.dropped ?? true,
    };
  }

  change(changes) {
    if ("row" in changes && changes.show) this.pinned = true;
    this.draw({ ...this.state, ...changes });
    const words = new URLSearchParams({ show: this.state.show });
    for (const key of NUMBERS) if (this.state[key] !== null && !(key === "of" && this.state.of < 0)) words.set(key, this.state[key]);
    clearTimeout(this.writing); // browsers limit how often the address may change
    this.writing = setTimeout(() => history.replaceState(null, "", `#${words}`), 150);
  }

  draw(state) {
    this.state = state;
    const { groups, tags, parts } = VIEWS[state.show][1](this.explanation, state, (changes) => this.change(changes));
    this.stage.layers(groups, tags);
    this.views.querySelector(`[value=${state.show}]`).checked = true;
    const focused = [...this.panel.querySelectorAll("input, select, button")].indexOf(document.activeElement);
    const old = this.panel.querySelector("input[type=range]"), scrolled = this.panel.querySelector(".short")?.scrollTop;
    this.panel.replaceChildren(...parts);
    const fresh = this.panel.querySelector("input[type=range]");
    if (old && fresh) keep(old, fresh);
    if (scrolled && this.panel.querySelector(".short")) this.panel.querySelector(".short").scrollTop = scrolled;
    if (focused >= 0) this.panel.querySelectorAll("input, select, button")[focused]?.focus();
  }

  cell(x, y) {
    const { level, row, column } = this.state, cell = this.explanation.cellAt(level, x, y);
    if (cell.row !== row || cell.column !== column) this.change(cell);
  }

  /** Handle a click: pin a cell, or choose the smallest box under the pointer. */
  pick(x, y) {
    const { show } = this.state;
    if (show === "cells") {
      this.cell(x, y);
      this.pinned = true;
    } else if (show === "detections" || show === "objects") {
      const index = smallest(this.explanation[show] ?? [], x, y);
      this.change({ [show.slice(0, -1)]: index < 0 ? null : index });
    }
  }

  key(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || this.state?.show !== "cells" || event.ctrlKey || event.metaKey || event.altKey) return;
    const { level, row, column } = this.state, { rows, columns } = this.explanation.levels[level];
    const cell = { row: row + step[0], column: column + step[1] };
    this.pinned = true;
    if (cell.row >= 0 && cell.row < rows && cell.column >= 0 && cell.column < columns) this.change(cell);
    event.preventDefault();
    event.stopPropagation();
  }
}

/** A slider that is being dragged must stay in the page, so the old one replaces the new one. */
function keep(old, fresh) {
  const label = old.parentElement, other = fresh.parentElement;
  label.querySelector("output").textContent = other.querySelector("output").textContent;
  other.replaceWith(label);
}

function smallest(boxes, x, y) {
  const area = ([left, top, right, bottom]) => (right - left) * (bottom - top);
  const under = boxes.map(({ box }, index) => [box, index]).filter(([[left, top, right, bottom]]) => x >= left && x <= right && y >= top && y <= bottom);
  return under.sort(([one], [other]) => area(one) - area(other))[0]?.[1] ?? -1;
}
