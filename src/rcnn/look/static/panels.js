// The four views of "Inside the RPN": what each draws on the picture, and the tables beside it.

import { element, slider } from "./dom.js";
import { extent } from "./insides.js";
import { frame, frames, heat, tag } from "./sketch.js";
import { told } from "./tips.js";

const number = (value) => value.toLocaleString("en");
const share = (value) => value.toFixed(3);

/** A table; headings are [text, tip], cells are texts or elements, and a number has the tip of its column. */
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
  return element("dl", {}, ...pairs.flatMap(([text, tip, value]) => [told("dt", tip, text), element("dd", { "data-tip": tip }, value)]));
}

function levels(insides, chosen, change, all) {
  const options = insides.levels.map(({ stride, rows, columns }, level) => [level, `stride ${stride}: ${rows} x ${columns} cells`]);
  if (all) options.unshift([-1, "all"]);
  const select = element("select", { name: "level" }, ...options.map(([value, text]) => element("option", { value, selected: value === chosen }, text)));
  select.addEventListener("change", () => change(Number(select.value)));
  return element("label", { "data-tip": "level" }, "level", select);
}

const swatch = (kind) => element("span", { class: `key ${kind}`, "aria-hidden": "true" });

/** A cell, its anchors and their moved boxes, over the objectness of its level. */
export function cells(insides, state, change) {
  const map = element("input", { type: "checkbox", checked: state.map });
  map.addEventListener("change", () => change({ map: map.checked }));
  const anchors = insides.anchorsOf(state), labelled = Boolean(insides.label);
  const headings = [["anchor", "which"], ["size", "size"], ...(labelled ? [["label", "label"], ["IoU", "iou"]] : []), ["objectness", "objectness"], ["moved", "moved"]];
  const rows = anchors.map((anchor, which) => {
    const cell = [element("span", {}, swatch(`kind-${which % 12}`), ` ${which}`), extent(insides.anchorBox(anchor))];
    if (labelled) cell.push(insides.labelOf(anchor), share(insides.overlap(anchor)));
    return [...cell, share(insides.probability(anchor)), extent(insides.movedBox(anchor))];
  });
  const lines = anchors.flatMap((anchor, which) => [
    frame(insides.anchorBox(anchor), `anchor kind-${which % 12}`), frame(insides.movedBox(anchor), `moved kind-${which % 12}`),
  ]);
  return {
    groups: [...(state.map ? [heat(insides, state.level)] : []), ...(insides.objects ?? []).map((one) => frame(one.box, "truth")), ...lines, frame(insides.cellBox(state), "cell")],
    tags: [],
    parts: [
      levels(insides, state.level, (level) => {
        const [left, top, right, bottom] = insides.cellBox(state);
        change(insides.cellAt(level, (left + right) / 2, (top + bottom) / 2));
      }),
      element("label", {}, map, "objectness map", element("span", { class: "heat-key", "aria-hidden": "true" }), element("span", { "data-tip": "objectness" }, "0 to 1")),
      facts(["cell", "cell", `row ${state.row}, column ${state.column}`]),
      element("div", { class: "scroll" }, table("Anchors of the cell", headings, rows)),
      element("p", { class: "small" }, "Point at the picture for a cell, click to keep it; with the picture in focus, the arrow keys move it. Anchors are dashed, their moved boxes are not."),
    ],
  };
}

/** Boxes before and after NMS, at a threshold that can be moved. */
export function suppression(insides, state, change) {
  const { kept, dropped } = insides.split(state.nms, state.of);
  const best = [[], [], []];
  for (const anchor of kept) best[Math.min(2, Math.floor(insides.probability(anchor) * 3))].push(insides.movedBox(anchor));
  const check = element("input", { type: "checkbox", checked: state.dropped });
  check.addEventListener("change", () => change({ dropped: check.checked }));
  const value = insides.thresholds.indexOf(state.nms), shown = (place) => String(insides.thresholds[place]);
  const slide = slider("IoU of NMS", 0, insides.thresholds.length - 1, 1, value, (place) => change({ nms: insides.thresholds[place] }), shown);
  slide.dataset.tip = "nms";
  const numbers = facts(
    ["boxes before NMS", "before_nms", number(kept.length + dropped.length)], ["dropped", "dropped", number(dropped.length)],
    ["proposals", "proposals", number(kept.length)], ["setting rpn.nms", "nms", String(insides.nms)]);
  return {
    groups: [...(state.dropped ? [frames(dropped.map((anchor) => insides.movedBox(anchor)), "lines dropped")] : []), ...best.map((boxes, at) => frames(boxes, `lines kept-${at}`))],
    tags: [],
    parts: [
      element("div", { id: "sliders" }, slide), levels(insides, state.of, (of) => change({ of }), true),
      element("label", {}, check, swatch("dropped"), "dropped boxes"), numbers,
      element("p", { class: "small" }, swatch("kept-0"), " objectness under a third, ", swatch("kept-1"), " under two thirds, ", swatch("kept-2"), " above"),
    ],
  };
}

/** The detections, and the way of one of them back to its cell. */
export function detections(insides, state, change) {
  const all = insides.detections;
  if (!all) return { groups: [], tags: [], parts: [element("p", { class: "note" }, "This model has no second stage (roi.head=none): it only proposes boxes.")] };
  const chosen = all[state.detection], rows = all.map((one, index) => [button(one.name, () => change({ detection: index }), String(one === chosen)), share(one.score)]);
  const list = () => element("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Detections" }, table("Detections", [["detection", "detections"], ["score", "score"]], rows));
  const parts = [all.length ? list() : element("p", { class: "note" }, "Nothing was detected from the score threshold on.")];
  if (!chosen) {
    const groups = all.map((one) => frame(one.box, `plain kind-${one.label % 12}`));
    return { groups, tags: all.map((one) => tag(one.box, `${one.name.slice(0, 40)} ${one.score.toFixed(2)}`)), parts };
  }
  const place = insides.place(chosen.anchor), anchor = insides.anchorBox(chosen.anchor), proposal = insides.movedBox(chosen.anchor);
  const ious = chosen.iou ?? [];
  const headings = [["box", ""], ["size", "size"], ["probability", "objectness"], ...(chosen.iou ? [["IoU", "iou"]] : [])];
  const line = (kind, text, box, value, iou) => [element("span", {}, swatch(kind), ` ${text}`), extent(box), value, ...(chosen.iou ? [share(iou)] : [])];
  const way = table("From anchor to detection", headings, [
    line("final", "detection", chosen.box, told("span", "score", share(chosen.score)), ious[2]),
    line("proposal", "proposal", proposal, share(insides.probability(chosen.anchor)), ious[1]),
    line("origin", "anchor", anchor, "", ious[0]),
  ]);
  parts.push(
    element("h2", {}, `From anchor to detection: ${chosen.name}`), element("div", { class: "scroll" }, way),
    facts(["proposal", "rank", `number ${insides.ranks.get(chosen.anchor)} of ${number(insides.proposals.length)}`],
      ["anchor", "which", String(place.which)], ["cell", "cell", `row ${place.row}, column ${place.column}`],
      ["level", "level", `stride ${insides.levels[place.level].stride}`]),
    button("Show this cell", () => change({ show: "cells", ...place })), button("All detections", () => change({ detection: null })));
  return {
    groups: [frame(insides.cellBox(place), "cell"), frame(anchor, "origin"), frame(proposal, "proposal"), frame(chosen.box, "final")],
    tags: [tag(chosen.box, `${chosen.name.slice(0, 40)} ${chosen.score.toFixed(2)}`)], parts,
  };
}

/** The labelled objects: which were found, and where the others were lost. */
export function objects(insides, state, change) {
  const all = insides.objects;
  if (!all) return { groups: [], tags: [], parts: [element("p", { class: "note" }, "The labels of this picture are not known.")] };
  const chosen = all[state.object];
  const order = all.map((_, index) => index).sort((one, other) => Boolean(all[other].stage) - Boolean(all[one].stage)); // lost ones first
  const rows = order.map((index) => {
    const { name, stage, where } = all[index];
    return [button(name, () => change({ object: index }), String(index === state.object)), element("b", { class: where === "found" ? "right" : stage ? "lost" : "" }, stage || where)];
  });
  const list = table("Objects", [["object", "objects"], ["stage", "stage"]], rows);
  const parts = [element("div", { class: "scroll short", tabindex: "0", role: "region", "aria-label": "Objects" }, list)];
  const kind = (one) => (one.where === "found" ? "right" : one.stage ? "lost" : "truth");
  if (!chosen) {
    return { groups: all.map((one) => frame(one.box, kind(one))), tags: all.filter((one) => one.stage).map((one) => tag(one.box, `lost: ${one.name.slice(0, 40)}`)), parts };
  }
  const pairs = [["stage", "stage", chosen.stage ? `${chosen.stage}${chosen.taken_for ? `: ${chosen.taken_for}` : ""}` : chosen.where]];
  if (chosen.score !== undefined && chosen.score !== null) pairs.push(["score", "score", share(chosen.score)]);
  if (chosen.remedy) {
    const { setting, value, text } = chosen.remedy;
    if (setting) pairs.push(["kept by", "remedy", element("code", {}, `${setting}=${value}`)]);
    pairs.push(["why", "remedy", text]);
  }
  pairs.push(["IoU of the best anchor", "iou", share(chosen.anchor_iou)], ["of the best moved box", "iou", share(chosen.nearest_iou)], ["its objectness", "objectness", share(insides.probability(chosen.nearest))]);
  parts.push(
    element("h2", {}, chosen.name), facts(...pairs),
    element("p", { class: "small" }, swatch("origin"), " best anchor, ", swatch("proposal"), " best moved box"),
    button("Show its cell", () => change({ show: "cells", ...insides.place(chosen.nearest) })), button("All objects", () => change({ object: null })));
  return {
    groups: [frame(insides.anchorBox(chosen.anchor), "origin"), frame(insides.movedBox(chosen.nearest), "proposal"), frame(chosen.box, kind(chosen))],
    tags: [tag(chosen.box, chosen.name.slice(0, 40))], parts,
  };
}
