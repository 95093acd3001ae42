// A link: the view, and after a question mark how the list is filtered and sorted and the overview coloured. What it
// leaves out is as it always is at first, so that it shows what its sender saw.

const LINK_STATE = ["text", "level", "fires", "sort", "edges", "copies", "colour"];

function readLink(asked) {
  // Other pages may know a feature by its name alone: #feature=2/313.
  const hash = asked.replace(/^#feature=(\d+\/\d+)/, "#/f/$1");
  const at = hash.lastIndexOf("?");
  const said = new URLSearchParams(at < 0 ? "" : hash.slice(at + 1));
  const known = LINK_STATE.filter((key) => said.has(key));
  if (!known.length) return { path: hash, state: {} }; // a question mark of the search's own
  return { path: hash.slice(0, at), state: Object.fromEntries(known.map((key) => [key, said.get(key)])) };
}

function writeLink(path, state) {
  const said = new URLSearchParams(LINK_STATE.filter((key) => state[key]).map((key) => [key, state[key]])).toString();
  return said ? `${path || "#/"}?${said}` : path;
}
