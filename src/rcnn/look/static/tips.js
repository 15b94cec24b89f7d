// What every number means, with its section of the paper (arXiv 1506.01497).

import { element } from "./dom.js";

export const TIPS = {
  anchors: "Boxes of fixed shapes around every cell of the feature maps; the RPN starts from these. Paper, section 3.1.1.",
  objects: "The labelled objects of this picture. Paper, section 3.1.2.",
  positive: "Anchors trained as objects: their IoU with one is at least rpn.positive_iou (0.7 in the paper), or the highest of all. Paper, section 3.1.2.",
  negative: "Anchors trained as background: their IoU with every object is under rpn.negative_iou (0.3 in the paper). Paper, section 3.1.2.",
  not_trained: "Anchors that are neither positive nor negative; training leaves them out. Paper, section 3.1.2.",
  sampled: "Anchors drawn for one step of training, 256 in the paper. Paper, section 3.1.3.",
  sampled_positive: "Positive anchors among those drawn, at most half. Paper, section 3.1.3.",
  before_nms: "Moved boxes that enter NMS: the best rpn.pre_test of every level. Paper, section 3.3.",
  proposals: "Boxes left after NMS, at most rpn.post_test. The second stage classifies these. Paper, section 3.3.",
  detections: "Final boxes above the score threshold. Paper, section 3.2.",
  level: "A feature map. One of its cells stands for stride x stride pixels. The paper has one map, of stride 16. Paper, section 3.3.",
  cell: "Row and column in the feature map, counted from 0. The same small network runs at every cell. Paper, section 3.1.",
  which: "Number of the anchor within its cell, in the order of anchors.sizes and anchors.ratios. Paper, section 3.1.1.",
  size: "Width x height, in pixels of the resized picture that the network sees. Paper, section 3.1.1.",
  label: "How training uses the anchor, by its IoU with the objects. Paper, section 3.1.2.",
  iou: "Area shared with the object, divided by the area that both cover: 1 is a perfect fit. Paper, section 3.1.2.",
  objectness: "Probability that the anchor contains an object, according to the RPN. Paper, section 3.1, equation 1.",
  moved: "The anchor after its four numbers tx, ty, tw, th have moved and resized it. Paper, section 3.1.2, equation 2.",
  nms: "Boxes whose IoU with a better one of their level is above this threshold are dropped; 0.7 in the paper. Paper, section 3.3.",
  dropped: "Boxes that enter NMS but are not proposals at this threshold. Paper, section 3.3.",
  score: "Probability of the class, according to the second stage (Fast R-CNN). Paper, section 3.2.",
  rank: "Rank of the proposal by objectness; the best is 1. Paper, section 3.3.",
  reason: "Whether the object was found, or the first step that lost it. A box fits from an IoU of 0.5 on. Paper, sections 3.1 to 3.3.",
  remedy: "The setting that would have kept the object at this step, and its nearest value. A later step may still lose it. Paper, section 3.3.",
};

/** An element that shows its tip when it is pointed at or focused. */
export function withTip(name, tip, ...children) {
  return element(name, { "data-tip": tip, tabindex: "0" }, ...children);
}

/** Show the tips of all elements inside `root`. */
export function tips(root) {
  const box = element("p", { id: "tip", role: "tooltip", hidden: true });
  document.body.append(box);
  const show = (event) => {
    const at = event.target.closest?.("[data-tip]");
    box.hidden = !at;
    if (!at) return;
    box.textContent = TIPS[at.dataset.tip];
    at.setAttribute("aria-describedby", "tip");
    const { left, top, bottom } = at.getBoundingClientRect();
    const { width, height } = box.getBoundingClientRect();
    box.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
    box.style.top = `${bottom + height + 12 < innerHeight ? bottom + 6 : top - height - 6}px`;
  };
  for (const kind of ["pointerover", "focusin"]) root.addEventListener(kind, show);
  for (const kind of ["pointerleave", "focusout"]) root.addEventListener(kind, () => (box.hidden = true));
  addEventListener("scroll", () => (box.hidden = true), { capture: true, passive: true });
  addEventListener("keydown", (event) => event.key === "Escape" && (box.hidden = true));
}
