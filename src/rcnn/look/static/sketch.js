// What "Inside the RPN" draws on the picture.

import { drawn } from "./dom.js";

const STOPS = [[90, 20, 160], [200, 50, 120], [245, 130, 50], [250, 240, 80]];

/** A frame with a dark one under it; classes say what it is. */
export function frame(box, kind) {
  const [left, top, right, bottom] = box;
  const place = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  return drawn("g", {}, drawn("rect", { ...place, class: "under" }), drawn("rect", { ...place, class: kind }));
}

/** Frames of many boxes as one path, which stays fast with thousands. */
export function frames(boxes, kind) {
  const lines = boxes.map(([left, top, right, bottom]) => `M${left.toFixed(1)} ${top.toFixed(1)}H${right.toFixed(1)}V${bottom.toFixed(1)}H${left.toFixed(1)}Z`);
  return drawn("path", { d: lines.join(""), class: kind });
}

/** A few words at the corner of a box. */
export function tag(box, text) {
  return drawn("text", { "data-x": box[0], "data-y": box[1] }, text);
}

/** The objectness of a level, the highest of each cell's anchors, over the picture. */
export function heat(insides, level) {
  const { rows, columns, steps } = insides.levels[level];
  const size = { width: columns * steps[0], height: rows * steps[1] };
  insides.maps ??= [];
  insides.maps[level] ??= painted(insides, level);
  const image = drawn("image", { href: insides.maps[level], ...size, preserveAspectRatio: "none", class: "heat" });
  return drawn("svg", { width: insides.width, height: insides.height, viewBox: `0 0 ${insides.width} ${insides.height}`, class: "clip" }, image);
}

function painted(insides, level) {
  const { rows, columns, start } = insides.levels[level], each = insides.perCell;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    let best = 0;
    for (let which = 0; which < each; which++) best = Math.max(best, insides.probability(start + cell * each + which));
    const [at, share] = [Math.min(2, Math.floor(best * 3)), best * 3 - Math.min(2, Math.floor(best * 3))];
    for (let channel = 0; channel < 3; channel++) {
      picture.data[cell * 4 + channel] = STOPS[at][channel] * (1 - share) + STOPS[at + 1][channel] * share;
    }
    picture.data[cell * 4 + 3] = 255 * (0.05 + 0.85 * Math.sqrt(best));
  }
  context.putImageData(picture, 0, 0);
  return canvas.toDataURL();
}
