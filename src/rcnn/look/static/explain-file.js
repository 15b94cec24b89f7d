// The file that `rcnn explain --html` writes, which contains its picture and numbers.

import { Explain } from "./explain.js";
import { unpacked } from "./explanation.js";

const content = JSON.parse(document.getElementById("content-json").textContent);

unpacked(content.explanation).then((explanation) => {
  const explain = new Explain(document);
  explain.show(explanation, content.picture, content.name);
  addEventListener("keydown", (event) => {
    if (!event.target.matches?.("input, select") && !event.ctrlKey && !event.metaKey) explain.stage.zoomKey(event.key);
  });
});
