"use strict";
// Asks the server as any client does. Names of artifacts and classes are anybody's: they become text, never HTML.

const ZERO_SHOT = "@zero-shot";
const FEW = 5; // classes shown at first
const MANY = 12; // choices from which on they can be filtered
const $ = (id) => document.getElementById(id);

let image = null; // the File that is asked about
let key = ""; // kept nowhere else
let choices = []; // {name, facts, box}: what may be asked, and its checkbox
let asking = new AbortController();

class Told extends Error {} // its message is a sentence for the person

function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// A name in its own writing direction, so that it cannot turn round what stands beside it.
const named = (text) => make("bdi", {}, text);
const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(1)} %`);
const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

function show(id, text) {
  $(id).textContent = text;
  if (id === "error") $(id).hidden = !text;
}

// ---------------------------------------------------------------------------------------------------------------------
// The server

async function call(path, options = {}) {
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Told("The connection ended without an answer: the server has stopped, or the image is too large for it.");
  }
  const body = await response.json().catch(() => null);
  if (response.ok && body !== null) return body;
  if (response.status === 401) {
    $("key-form").hidden = false;
    $("key").focus();
    throw new Told(key ? "The server does not know this API key." : "The server asks for an API key.");
  }
  const said = typeof body?.error === "string" ? body.error : body?.error?.message;
  const wait = response.headers.get("Retry-After");
  const again = wait ? ` Try again in ${many(Number(wait), "second")}.` : "";
  throw new Told(sentence(said || `the server answered with status ${response.status}`) + again);
}

function sentence(text) {
  const begun = /^[a-z]+\s/.test(text) ? text[0].toUpperCase() + text.slice(1) : text; // a word, not a name or a URI
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

async function load() {
  const chosen = new Set(choices.filter((choice) => choice.box.checked).map((choice) => choice.name));
  show("error", "");
  try {
    offer((await call("v1/artifacts")).artifacts, chosen);
  } catch (error) {
    show("choices-note", "");
    show("error", error.message);
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// What is asked

function offer(artifacts, chosen) {
  choices = [];
  $("choices").replaceChildren(...artifacts.flatMap((artifact) => items(artifact, chosen)));
  if (choices.length && !choices.some((choice) => choice.box.checked)) choices[0].box.checked = true;
  $("filter").hidden = choices.length <= MANY;
  show("choices-note", choices.length ? "" : "No artifact can be asked.");
  write();
}

// The artifact, each of its versions where there are several, and what was refused.
function items(artifact, chosen) {
  const found = [];
  const add = (name, version) => {
    const box = make("input", { type: "checkbox", checked: chosen.has(name) });
    const facts = version ? about(version) : "";
    choices.push({ name, facts, box });
    const label = make("label", { className: "choice" }, box, make("span", {}, named(name), make("small", {}, facts)));
    found.push(make("li", {}, label));
  };
  if (artifact.live) {
    add(artifact.name, artifact.versions.find((version) => version.version === artifact.live));
    if (artifact.versions.length > 1) {
      for (const version of artifact.versions) add(`${artifact.name}@${version.version}`, version);
    }
  }
  for (const refused of artifact.refused) {
    const reason = `${refused.source} was refused: ${refused.reason}`;
    found.push(make("li", {}, make("div", {}, named(artifact.name), make("small", {}, reason))));
  }
  return found;
}

function about(version) {
  const test = `${percent(version.accuracy)} on ${many(version.test_images, "test image")}`;
  const method = version.method.split("(")[0]; // without its settings
  return `${method} · ${version.box} · ${test} (zero-shot ${percent(version.zero_shot_accuracy)})`;
}

function choose(files) {
  if (!files.length) {
    show("error", "That holds no image file. Links are not fetched: save the image, then choose it.");
    return;
  }
  asking.abort();
  image = files[0];
  const preview = $("preview");
  URL.revokeObjectURL(preview.src);
  preview.src = URL.createObjectURL(image);
  preview.hidden = false;
  const size = `${Math.ceil(image.size / 1024).toLocaleString("en")} kB · `;
  $("image-note").replaceChildren(named(image.name), make("small", {}, size, make("strong", {}, "choose another")));
  show("error", "");
  show("status", files.length > 1 ? `The first of ${files.length} files was taken: ${image.name}` : `Image: ${image.name}`);
  $("answers").replaceChildren();
  show("answers-note", "Nothing asked yet about this image.");
  write();
}

const asked = (choice) => ($("bare").checked ? [choice.name, choice.name.split("@")[0] + ZERO_SHOT] : [choice.name]);

// ---------------------------------------------------------------------------------------------------------------------
// The request in other words

function write() {
  const names = [...new Set(choices.filter((choice) => choice.box.checked).flatMap(asked))];
  $("request").hidden = !names.length;
  const file = image?.name || "photo.png";
  const base = new URL("models/", document.baseURI).href;
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const path = (name) => encodeURIComponent(name).replaceAll("%40", "@");
  const header = key ? ` -H "Authorization: Bearer $KEYHOLE_API_KEY"` : "";
  show("curl", names.map((name) => `curl${header} --data-binary ${quoted("@" + file)} ${quoted(base + path(name))}`).join("\n"));
  show("python", [
    ...(key ? ["import os", ""] : []),
    "import requests",
    "",
    `with open(${JSON.stringify(file)}, "rb") as file:`,
    "    image = file.read()",
    ...(key ? [`headers = {"Authorization": "Bearer " + os.environ["KEYHOLE_API_KEY"]}`] : []),
    `for name in ${JSON.stringify(names.map(path)).replaceAll('","', '", "')}:`,
    `    answer = requests.post(${JSON.stringify(base)} + name, data=image${key ? ", headers=headers" : ""})`,
    "    answer.raise_for_status()",
    "    best = answer.json()[0]",
    `    print(name, best["label"], best["score"])`,
  ].join("\n"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Answers

async function ask() {
  const chosen = choices.filter((choice) => choice.box.checked);
  show("error", "");
  if (!image) return show("error", "Choose an image first.");
  if (!chosen.length) return show("error", "Choose at least one artifact.");
  asking.abort();
  const { signal } = (asking = new AbortController());
  show("status", "Asking …");
  let body;
  try {
    body = await image.arrayBuffer();
  } catch {
    show("status", "");
    return show("error", "The file cannot be read any more. Choose it again.");
  }
  const answers = new Map(); // name -> promise; several versions share one zero-shot answer
  const once = (name) => {
    if (!answers.has(name)) answers.set(name, classify(name, body, signal));
    return answers.get(name);
  };
  const started = performance.now();
  const found = await Promise.all(chosen.map((choice) => Promise.all(asked(choice).map(once))));
  if (signal.aborted) return;
  const seconds = ((performance.now() - started) / 1000).toFixed(2);
  const failed = found.filter(([tuned]) => tuned.error);
  show("answers-note", "");
  if (failed.length === found.length && new Set(failed.map(([tuned]) => tuned.error)).size === 1) {
    $("answers").replaceChildren(); // one reason for all of them, as where the image is broken: said once
    show("status", "");
    show("answers-note", "No answer.");
    return show("error", failed[0][0].error);
  }
  $("answers").replaceChildren(...chosen.map((choice, row) => card(choice, ...found[row])));
  const told = found.flatMap(([tuned], row) => (tuned.classes ? [`${chosen[row].name} says ${tuned.classes[0].label}`] : []));
  show("status", `${many(told.length, "answer")} in ${seconds} s: ${told.join("; ")}.`);
}

// {classes: [{label, score}]}, best first, or {error: a sentence}.
async function classify(name, body, signal) {
  const headers = { "Content-Type": "application/octet-stream" }; // what it is shows in its bytes
  try {
    return { classes: await call(`models/${encodeURIComponent(name)}`, { method: "POST", body, headers, signal }) };
  } catch (error) {
    return { error: error.message };
  }
}

function card(choice, tuned, bare) {
  const title = make("h3", { id: `answer-${choices.indexOf(choice)}` }, named(choice.name));
  const article = make("article", {}, title, make("small", {}, choice.facts));
  article.setAttribute("aria-labelledby", title.id);
  if (tuned.error) {
    article.append(make("p", { className: "error" }, tuned.error));
    return article;
  }
  const [best] = tuned.classes;
  const others = new Map(bare?.classes?.map(({ label, score }) => [label, score]));
  article.append(make("p", { className: "verdict" }, named(best.label)));
  if (best.score === null) article.append(make("p", { className: "note" }, "This model gives labels without probabilities."));
  if (bare?.error) article.append(make("p", { className: "note" }, `No zero-shot answer: ${bare.error}`));
  if (others.size) {
    const same = bare.classes[0].label === best.label;
    article.append(make("p", { className: "note" }, "Zero-shot says ", same ? "the same" : make("strong", {}, named(bare.classes[0].label))));
    const kinds = [["tuned", "tuned"], ["bare", "zero-shot"]].map(([className, text]) => make("span", { className }, text));
    article.append(make("p", { className: "legend note", ariaHidden: "true" }, ...kinds));
  }
  if (best.score === null) return article;
  const list = make("ol");
  article.append(list);
  const fill = (count) => list.replaceChildren(...tuned.classes.slice(0, count).map(({ label, score }) => row(label, score, others)));
  fill(FEW);
  if (tuned.classes.length > FEW) {
    const more = make("button", { type: "button", ariaExpanded: "false" }, `All ${tuned.classes.length} classes`);
    more.addEventListener("click", () => {
      const open = more.ariaExpanded === "false";
      more.ariaExpanded = String(open);
      fill(open ? tuned.classes.length : FEW);
    });
    article.append(more);
  }
  return article;
}

// A class, its bar, and that of zero-shot.
function row(label, score, others) {
  const bar = (kind, share, ...words) => {
    const line = make("i");
    line.style.setProperty("--share", share ?? 0);
    const unseen = words.map((word) => make("span", { className: "unseen" }, `${word} `));
    return make("div", { className: `bar ${kind}` }, line, make("span", {}, ...unseen, percent(share)));
  };
  if (!others.size) return make("li", {}, named(label), bar("tuned", score));
  const bare = others.get(label) ?? null;
  return make("li", {}, named(label), bar("tuned", score, "tuned"), bar("bare", bare, "zero-shot"));
}

// ---------------------------------------------------------------------------------------------------------------------
// Events

$("ask-form").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
$("key-form").addEventListener("submit", (event) => { event.preventDefault(); key = $("key").value; load(); });
$("ask-form").addEventListener("change", write);
$("file").addEventListener("change", (event) => { if (event.target.files.length) choose(event.target.files); });
$("preview").addEventListener("error", () => { $("preview").hidden = true; });
$("filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase();
  for (const { name, box } of choices) box.closest("li").hidden = !name.toLowerCase().includes(words);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) choose(event.clipboardData.files);
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // else the browser leaves the page for the file
    document.body.classList.toggle("dragging", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") choose(event.dataTransfer.files);
  });
}
for (const button of document.querySelectorAll("[data-copies]")) {
  button.hidden = !navigator.clipboard; // browsers give it to https and to this machine only
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText($(button.dataset.copies).textContent);
    show("status", `Copied the request as ${button.dataset.copies}.`);
  });
}
load();
