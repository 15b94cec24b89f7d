// Elements of the pages; texts are never taken as HTML.

/** An element with attributes and children. */
export function element(name, attributes = {}, ...children) {
  return filled(document.createElement(name), attributes, children);
}

/** The same in SVG. */
export function drawn(name, attributes = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Give an element these children; those that it has already stay in the page, which spares their layout. */
export function settle(parent, children) {
  const wanted = new Set(children);
  for (const child of [...parent.children]) if (!wanted.has(child)) child.remove();
  let at = parent.firstElementChild;
  for (const child of children) {
    if (child === at) at = at.nextElementSibling;
    else parent.insertBefore(child, at);
  }
}

/** A slider with its name and value; `moved` is called with the number. */
export function slider(name, least, most, step, value, moved, shown = (number) => number.toFixed(3)) {
  const input = element("input", { type: "range", min: least, max: most, step, value });
  const output = element("output", {}, shown(Number(value)));
  input.addEventListener("input", () => {
    output.textContent = shown(Number(input.value));
    moved(Number(input.value));
  });
  return element("label", {}, element("span", {}, name), input, output);
}
