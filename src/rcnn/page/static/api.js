// What the page asks the server for. The names of what comes back are those of page/api.py.

const gone = document.getElementById("gone");
const said = document.getElementById("said");

/** Ask for JSON; a server that does not answer and a refusal are told on the page, and raised. */
export async function ask(path, query = {}, options = {}) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== "" && value !== null));
  let response;
  try {
    response = await fetch(`${path}?${words}`, options);
  } catch (error) {
    if (error.name !== "AbortError") gone.hidden = false;
    throw error;
  }
  gone.hidden = true;
  const answer = response.headers.get("content-type")?.startsWith("application/json") ? await response.json() : null;
  if (!response.ok) {
    const shut = "This browser is not let in; open the address that rcnn look printed last.";
    tell(answer?.error ?? (response.status === 403 ? shut : `The server failed with this (${response.status}); see its terminal.`));
    throw new Error(`${response.status} ${path}`);
  }
  return answer;
}

/** Say a sentence at the foot of the page; nothing takes it away. */
export function tell(text) {
  said.textContent = text;
  said.hidden = !text;
}

/** An element with attributes and children; texts are never taken as HTML. */
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

/** A slider with its name and value; `moved` is called with the number. */
export function slider(name, least, most, step, value, moved) {
  const input = element("input", { type: "range", min: least, max: most, step, value });
  const output = element("output", {}, Number(value).toFixed(3));
  input.addEventListener("input", () => {
    output.textContent = Number(input.value).toFixed(3);
    moved(Number(input.value));
  });
  return element("label", {}, element("span", {}, name), input, output);
}
