// The numbers of the page "Explain", as look/explain.py packs them.

const UINT16_MAX = 65535;
const LABELS = { "1": "positive", "0": "negative", "-1": "not trained" };
const ARRAYS = { int32: Int32Array, uint16: Uint16Array, int8: Int8Array, uint8: Uint8Array };

/** Unpack the explanation of one picture. */
export async function unpacked(json) {
  const bytes = Uint8Array.from(atob(json.arrays), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  const arrays = {};
  let start = 0;
  for (const [name, type, length] of json.layout) {
    arrays[name] = new ARRAYS[type](content, start, length);
    start += arrays[name].byteLength;
  }
  return new Explanation({ ...json, ...arrays });
}

class Explanation {
  constructor(json) {
    Object.assign(this, json);
    this.unit = Math.max(json.width, json.height) / UINT16_MAX;
    this.perCell = json.levels[0].cell.length;
    this.ranks = new Map(json.proposals.map((anchor, index) => [anchor, index + 1]));
  }

  /** Level, row, column and number within the cell of an anchor. */
  locate(anchor) {
    const level = this.levels.findLastIndex(({ start }) => start <= anchor);
    const offset = anchor - this.levels[level].start, cell = Math.floor(offset / this.perCell);
    const { columns } = this.levels[level];
    return { level, row: Math.floor(cell / columns), column: cell % columns, which: offset % this.perCell };
  }

  /** The cell of a level at a point of the picture. */
  cellAt(level, x, y) {
    const { rows, columns, steps } = this.levels[level];
    const clamp = (value, count) => Math.max(0, Math.min(count - 1, Math.floor(value)));
    return { level, row: clamp(y / steps[1], rows), column: clamp(x / steps[0], columns) };
  }

  /** The box of a cell in the picture. */
  cellBox({ level, row, column }) {
    const [right, below] = this.levels[level].steps;
    return [column * right, row * below, (column + 1) * right, (row + 1) * below];
  }

  /** The anchors of a cell, first to last. */
  anchorsOf({ level, row, column }) {
    const { start, columns } = this.levels[level];
    return Array.from({ length: this.perCell }, (_, which) => start + (row * columns + column) * this.perCell + which);
  }

  anchorBox(anchor) {
    const { level, row, column, which } = this.locate(anchor), { cell, steps } = this.levels[level];
    return cell[which].map((value, side) => value + (side % 2 ? row * steps[1] : column * steps[0]));
  }

  movedBox(anchor) {
    return Array.from(this.moved.subarray(anchor * 4, anchor * 4 + 4), (value) => value * this.unit);
  }

  probability(anchor) {
    return this.objectness[anchor] / UINT16_MAX;
  }

  overlap(anchor) {
    return this.iou ? this.iou[anchor] / UINT16_MAX : null;
  }

  labelOf(anchor) {
    return this.label ? LABELS[this.label[anchor]] : null;
  }

  /** Anchors that enter NMS and are kept, or dropped, at a threshold; of one level, or of all (-1). */
  split(threshold, level) {
    const row = this.thresholds.indexOf(threshold) * this.before.length;
    const [first, last] = level < 0 ? [0, Infinity] : [this.levels[level].start, this.levels[level + 1]?.start ?? Infinity];
    const kept = [], dropped = [];
    this.before.forEach((anchor, index) => {
      if (anchor >= first && anchor < last) (this.kept[row + index] ? kept : dropped).push(anchor);
    });
    return { kept, dropped };
  }
}

/** Width x height of a box. */
export const extent = ([left, top, right, bottom]) => `${(right - left).toFixed(0)} x ${(bottom - top).toFixed(0)}`;
