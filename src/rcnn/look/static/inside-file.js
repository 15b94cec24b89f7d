// The file that `rcnn explain --html` writes: its picture and numbers are inside it.

import { Inside } from "./inside.js";
import { unpacked } from "./insides.js";

const file = JSON.parse(document.getElementById("told").textContent);

unpacked(file.inside).then((insides) => {
  const inside = new Inside(document);
  inside.show(insides, file.picture, file.name);
  addEventListener("keydown", (event) => {
    const zooms = { "+": () => inside.stage.zoom(0.7), "=": () => inside.stage.zoom(0.7), "-": () => inside.stage.zoom(1 / 0.7), "0": () => inside.stage.fit() };
    if (!event.target.matches?.("input, select") && !event.ctrlKey && !event.metaKey) zooms[event.key]?.();
  });
});
