// What the page "Explain" draws on the picture.

import { drawn } from "./dom.js";

const STOPS = [[90, 20, 160], [200, 50, 120], [245, 130, 50], [250, 240, 80]];

/** Frames of many boxes as one path, which is fast with thousands. */
export function frames(boxes, kind) {
  const lines = boxes.map(([left, top, right, bottom]) => `M${left.toFixed(1)} ${top.toFixed(1)}H${right.toFixed(1)}V${bottom.toFixed(1)}H${left.toFixed(1)}Z`);
  return drawn("path", { d: lines.join(""), class: kind });
}

/** A text at the corner of a box. */
export function tag(box, text) {
  return drawn("text", { "data-x": box[0], "data-y": box[1] }, text);
}

/** The objectness of a level, the highest of each cell's anchors, over the picture. */
export function heat(explanation, level) {
  const { rows, columns, steps } = explanation.levels[level];
  const size = { width: columns * steps[0], height: rows * steps[1] };
  explanation.maps ??= [];
  explanation.maps[level] ??= painted(explanation, level);
  const image = drawn("image", { href: explanation.maps[level], ...size, preserveAspectRatio: "none", class: "heat" });
  return drawn("svg", { width: explanation.width, height: explanation.height, viewBox: `0 0 ${explanation.width} ${explanation.height}`, class: "clip" }, image);
}

function painted(explanation, level) {
  const { rows, columns, start } = explanation.levels[level], each = explanation.perCell;
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d"), picture = context.createImageData(columns, rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    let best = 0;
    for (let which = 0; which < each; which++) best = Math.max(best, explanation.probability(start + cell * each + which));
    const [at, share] = [Math.min(2, Math.floor(best * 3)), best * 3 - Math.min(2, Math.floor(best * 3))];
    for (let channel = 0; channel < 3; channel++) {
      picture.data[cell * 4 + channel] = STOPS[at][channel] * (1 - share) + STOPS[at + 1][channel] * share;
    }
    picture.data[cell * 4 + 3] = 255 * (0.05 + 0.85 * Math.sqrt(best));
  }
  context.putImageData(picture, 0, 0);
  return canvas.toDataURL();
}
