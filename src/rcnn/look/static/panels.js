// The four views of the page "Explain": what each draws on the picture, and the tables beside it.

import { element, frame, slider } from "./dom.js";
import { extent } from "./explanation.js";
import { frames, heat, tag } from "./sketch.js";
import { withTip } from "./tips.js";

const number = (value) => value.toLocaleString("en");
const share = (value) => value.toFixed(3);

/** A table; headings are [text, tip], cells are texts or elements with the tip of their column. */
function table(name, headings, rows) {
  const head = headings.map(([text, tip]) => element("th", { scope: "col", "data-tip": tip, tabindex: tip ? "0" : null }, text));
  const lines = rows.map(([first, ...cells]) => {
    const line = element("tr", {}, element("th", { scope: "row", "data-tip": headings[0][1] }, first));
    line.append(...cells.map((cell, at) => element("td", { "data-tip": headings[at + 1][1] }, cell)));
    return line;
  });
  return element("table", { "aria-label": name }, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...lines));
}

function button(text, act, pressed = null) {
  const made = element("button", { type: "button", "aria-pressed": pressed }, text);
  made.addEventListener("click", act);
  return made;
}

function facts(...pairs) {
  return element("dl", {}, ...pairs.flatMap(([text, tip, value]) => [withTip("dt", tip, text), element("dd", { "data-tip": tip }, value)]));
}

function levels(explanation, chosen, change, all) {
  const options = explanation.levels.map(({ stride, rows, columns }, level) => [level, `stride ${stride}: ${rows} x ${columns} cells`]);
  if (all) options.unshift([-1, "all"]);
  const select = element("select", { name: "level" }, ...options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  select.addEventListener("change", () => change(Number(select.value)));
  return element("label", { "data-tip": "level" }, "level", select);
}

const swatch = (kind) => element("span", { class: `key ${kind}`, "aria-hidden": "true" });

/** A cell, its anchors and their moved boxes, over the objectness of its level. */
export function cells(explanation, state, change) {
  const map = element("input", { type: "checkbox", checked: state.map });
  map.addEventListener("change", () => change({ map: map.checked }));
  const anchors = explanation.anchorsOf(state), labelled = Boolean(explanation.label);
  const headings = [["anchor", "which"], ["size", "size"], ...(labelled ? [["label", "label"], ["IoU", "iou"]] : []), ["objectness", "objectness"], ["moved", "moved"]];
  const rows = anchors.map((anchor, which) => {
    const cell = [element("span", {}, swatch(`kind-${which % 12}`), ` ${which}`), extent(explanation.anchorBox(anchor))];
    if (labelled) cell.push(explanation.labelOf(anchor), share(explanation.overlap(anchor)));
    return [...cell, share(explanation.probability(anchor)), extent(explanation.movedBox(anchor))];
  });
  const lines = anchors.flatMap((anchor, which) => [
    frame(explanation.anchorBox(anchor), `anchor kind-${which % 12}`), frame(explanation.movedBox(anchor), `moved kind-${which % 12}`),
  ]);
  return {
    groups: [...(state.map ? [heat(explanation, state.level)] : []), ...(explanation.objects ?? []).map((item) => frame(item.box, "truth")), ...lines, frame(explanation.cellBox(state), "cell")],
    tags: [],
    parts: [
      levels(explanation, state.level, (level) => {
        const [left, top, right, bottom] = explanation.cellBox(state);
        change(explanation.cellAt(level, (left + right) / 2, (top + bottom) / 2));
      }),
      element("label", {}, map, "objectness map", element("span", { class: "heat-key", "aria-hidden": "true" }), element("span", { "data-tip": "objectness" }, "0 to 1")),
      facts(["cell", "cell", `row ${state.row}, column ${state.column}`]),
      element("div", { class: "scroll" }, table("Anchors of the cell", headings, rows)),
      element("p", { class: "small" }, "Point at a cell of the picture; click to pin it. When the picture has the focus, the arrow keys go to the next cell. Anchors are dashed lines, their moved boxes solid lines."),
    ],
  };
}

/** Boxes before and after NMS, with a slider for the threshold. */
export function suppression(explanation, state, change) {
  const { kept, dropped } = explanation.split(state.nms, state.of);
  const best = [[], [], []];
  for (const anchor of kept) best[Math.min(2, Math.floor(explanation.probability(anchor) * 3))].push(explanation.movedBox(anchor));
  const check = element("input", { type: "checkbox", checked: state.dropped });
  check.addEventListener("change", () => change({ dropped: check.checked }));
  const value = explanation.thresholds.indexOf(state.nms), shown = (index) => String(explanation.thresholds[index]);
  const slide = slider("IoU of NMS", 0, explanation.thresholds.length - 1, 1, value, (index) => change({ nms: explanation.thresholds[index] }), shown);
  slide.dataset.tip = "nms";
  const numbers = facts(
    ["boxes before NMS", "before_nms", number(kept.length + dropped.length)], ["dropped", "dropped", number(dropped.length)],
    ["proposals", "proposals", number(kept.length)], ["setting rpn.nms", "nms", String(explanation.nms)]);
  return {
    groups: [...(state.dropped ? [frames(dropped.map((anchor) => explanation.movedBox(anchor)), "lines dropped")] : []), ...best.map((boxes, at) => frames(boxes, `lines kept-${at}`))],
    tags: [],
    parts: [
      element("div", { id: "sliders" }, slide), levels(explanation, state.of, (of) => change({ of }), true),
      element("label", {}, check, swatch("dropped"), "dropped boxes"), numbers,
      element("p", { class: "small" }, swatch("kept-0"), " objectness under a third, ", swatch("kept-1"), " under two thirds, ", swatch("kept-2"), " above"),
    ],
  };
}

/** The detections, and the proposal, anchor and cell that one of them came from. */
export function detections(explanation, state, change) {
  const all = explanation.detections;
  if (!all) return { groups: [], tags: [], parts: [element("p", { class: "note" }, "This model has no second stage (roi.head=none). It only proposes boxes.")] };
  const chosen = all[state.detection], rows = all.map((item, index) => [button(item.name, () => change({ detection: index }), String(item === chosen)), share(item.score)]);
  const list = () => element("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Detections" }, table("Detections", [["detection", "detections"], ["score", "score"]], rows));
  const parts = [all.length ? list() : element("p", { class: "note" }, "There are no detections above the score threshold.")];
  if (!chosen) {
    const groups = all.map((item) => frame(item.box, `plain kind-${item.label % 12}`));
    return { groups, tags: all.map((item) => tag(item.box, `${item.name.slice(0, 40)} ${item.score.toFixed(2)}`)), parts };
  }
  const origin = explanation.locate(chosen.anchor), anchor = explanation.anchorBox(chosen.anchor), proposal = explanation.movedBox(chosen.anchor);
  const ious = chosen.iou ?? [];
  const headings = [["box", ""], ["size", "size"], ["probability", "objectness"], ...(chosen.iou ? [["IoU", "iou"]] : [])];
  const line = (kind, text, box, value, iou) => [element("span", {}, swatch(kind), ` ${text}`), extent(box), value, ...(chosen.iou ? [share(iou)] : [])];
  const origins = table("From anchor to detection", headings, [
    line("final", "detection", chosen.box, withTip("span", "score", share(chosen.score)), ious.at(-1)),
    ...chosen.stages.map((box, index) => line("between", `after head ${index + 1}`, box, "", ious[2 + index])).reverse(),
    line("proposal", "proposal", proposal, share(explanation.probability(chosen.anchor)), ious[1]),
    line("origin", "anchor", anchor, "", ious[0]),
  ]);
  parts.push(
    element("h2", {}, `From anchor to detection: ${chosen.name}`), element("div", { class: "scroll" }, origins),
    facts(["proposal", "rank", `number ${explanation.ranks.get(chosen.anchor)} of ${number(explanation.proposals.length)}`],
      ["anchor", "which", String(origin.which)], ["cell", "cell", `row ${origin.row}, column ${origin.column}`],
      ["level", "level", `stride ${explanation.levels[origin.level].stride}`]),
    button("Show this cell", () => change({ show: "cells", ...origin })), button("All detections", () => change({ detection: null })));
  return {
    groups: [frame(explanation.cellBox(origin), "cell"), frame(anchor, "origin"), frame(proposal, "proposal"), ...chosen.stages.map((box) => frame(box, "between")), frame(chosen.box, "final")],
    tags: [tag(chosen.box, `${chosen.name.slice(0, 40)} ${chosen.score.toFixed(2)}`)], parts,
  };
}

/** The labelled objects: which were found, and at which step the others were lost. */
export function objects(explanation, state, change) {
  const all = explanation.objects;
  if (!all) return { groups: [], tags: [], parts: [element("p", { class: "note" }, "This picture has no known labels.")] };
  const chosen = all[state.object];
  const order = all.map((_, index) => index).sort((item, other) => Boolean(all[other].reason) - Boolean(all[item].reason)); // lost ones first
  const rows = order.map((index) => {
    const { name, reason, where } = all[index];
    return [button(name, () => change({ object: index }), String(index === state.object)), element("b", { class: where === "found" ? "right" : reason ? "lost" : "" }, reason || where)];
  });
  const list = table("Objects", [["object", "objects"], ["result", "reason"]], rows);
  const parts = [element("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Objects" }, list)];
  const kind = (item) => (item.where === "found" ? "right" : item.reason ? "lost" : "truth");
  if (!chosen) {
    return { groups: all.map((item) => frame(item.box, kind(item))), tags: all.filter((item) => item.reason).map((item) => tag(item.box, `lost: ${item.name.slice(0, 40)}`)), parts };
  }
  const pairs = [["result", "reason", chosen.reason ? `${chosen.reason}${chosen.taken_for ? `: ${chosen.taken_for}` : ""}` : chosen.where]];
  if (chosen.score !== undefined && chosen.score !== null) pairs.push(["score", "score", share(chosen.score)]);
  if (chosen.remedy) {
    const { setting, value, text } = chosen.remedy;
    if (setting) pairs.push(["kept by", "remedy", element("code", {}, `${setting}=${value}`)]);
    pairs.push(["why", "remedy", text]);
  }
  pairs.push(["IoU of the best anchor", "iou", share(chosen.anchor_iou)], ["of the best moved box", "iou", share(chosen.nearest_iou)], ["its objectness", "objectness", share(explanation.probability(chosen.nearest))]);
  parts.push(
    element("h2", {}, chosen.name), facts(...pairs),
    element("p", { class: "small" }, swatch("origin"), " best anchor, ", swatch("proposal"), " best moved box"),
    button("Show its cell", () => change({ show: "cells", ...explanation.locate(chosen.nearest) })), button("All objects", () => change({ object: null })));
  return {
    groups: [frame(explanation.anchorBox(chosen.anchor), "origin"), frame(explanation.movedBox(chosen.nearest), "proposal"), frame(chosen.box, kind(chosen))],
    tags: [tag(chosen.box, chosen.name.slice(0, 40))], parts,
  };
}
