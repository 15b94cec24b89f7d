// Elements of the pages. Texts are never parsed as HTML.

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function drawn(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(target, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) target.setAttribute(name, value === true ? "" : value);
  }
  target.append(...children);
  return target;
}

/** A frame of a box with a dark one under it, so that it is visible on any picture; the class is its kind. */
export function frame([left, top, right, bottom], kind) {
  const position = { x: left, y: top, width: Math.max(0, right - left), height: Math.max(0, bottom - top) };
  return drawn("g", {}, drawn("rect", { ...position, class: "under" }), drawn("rect", { ...position, class: kind }));
}

/** Give an element these children; those that it has already stay in the page, which saves their layout. */
export function settle(parent, children) {
  const staying = new Set(children);
  for (const child of [...parent.children]) if (!staying.has(child)) child.remove();
  let next = parent.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
}

/** A slider with its name and value; `moved` is called with the number. */
export function slider(name, min, max, step, value, moved, shown = (number) => number.toFixed(3)) {
  const input = element("input", { type: "range", min, max, step, value });
  const output = element("output", {}, shown(Number(value)));
  input.addEventListener("input", () => {
    output.textContent = shown(Number(input.value));
    moved(Number(input.value));
  });
  return element("label", {}, element("span", {}, name), input, output);
}
