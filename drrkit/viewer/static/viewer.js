// The page: what the user does goes to the server, what the server says is shown.

import { Chart } from "./chart.js";
import { MODES, WHOLE, composed, resized, shownSize, toCanvas } from "./pictures.js";

const DEGREES_PER_PIXEL = 0.25;
const RECONNECT_MS = 2000;
const AXES = [
  { name: "turn x", unit: "°", reach: 60, step: 0.1 },
  { name: "turn y", unit: "°", reach: 60, step: 0.1 },
  { name: "roll z", unit: "°", reach: 60, step: 0.1 },
  { name: "right x", unit: "mm", reach: 150, step: 0.1 },
  { name: "down y", unit: "mm", reach: 150, step: 0.1 },
  { name: "depth z", unit: "mm", reach: 300, step: 0.1 },
];
// key: axis, sign
const MOVES = {
  ArrowLeft: [3, -1], ArrowRight: [3, 1], ArrowUp: [4, -1], ArrowDown: [4, 1],
  PageUp: [5, -1], PageDown: [5, 1],
  KeyW: [0, -1], KeyS: [0, 1], KeyA: [1, 1], KeyD: [1, -1], KeyQ: [2, -1], KeyE: [2, 1],
};

const at = (id) => document.getElementById(id);
const view = at("view");
const chart = new Chart(at("chart"));
const shown = { xray: null, drr: null, mode: "blend", scale: 1, pixelMm: 1, window: WHOLE };
const opacity = { blend: 0.5, edges: 1, checkerboard: 1, difference: 1 };
let socket = null;
let kinds = [];
let strategies = {};
let running = false;
let connected = false;

// ---- to the server

function send(message) {
  if (connected) socket.send(JSON.stringify(message));
}

// Moves add up until the next picture is due, so that the socket carries few of them.
let pending = [0, 0, 0, 0, 0, 0];
let placed = null;
let scheduled = false;

function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    if (placed) send({ type: "place", xi: placed });
    if (pending.some((value) => value !== 0)) send({ type: "nudge", xi: pending });
    placed = null;
    pending = [0, 0, 0, 0, 0, 0];
  });
}

function nudge(changes) {
  if (running) return;
  for (const [axis, value] of Object.entries(changes)) pending[axis] += value;
  schedule();
}

// ---- from the server

function connect() {
  const address = new URL("live", location.href);
  address.protocol = "ws:";
  socket = new WebSocket(address);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => setConnection(true);
  socket.onclose = () => {
    if (connected) notify("connection lost: is drrkit view still running?", true);
    setConnection(false);
    setTimeout(connect, RECONNECT_MS);
  };
  socket.onmessage = ({ data }) => {
    if (data instanceof ArrayBuffer) receivePicture(data);
    else RECEIVERS[JSON.parse(data).type]?.(JSON.parse(data));
  };
}

function setConnection(open) {
  connected = open;
  at("connection").dataset.state = open ? "connected" : "lost";
  at("connection").textContent = open ? "connected" : "not connected";
}

const RECEIVERS = {
  hello(message) {
    kinds = message.kinds;
    document.title = `${message.title} – drrkit view`;
    at("title").textContent = message.title;
    fill(at("similarity"), message.similarities.map((name) => [name, name]));
    fill(at("strategy"), Object.keys(message.strategies).map((name) => [name, name]));
    strategies = message.strategies;
    describeStrategy();
    at("save").hidden = !message.can_save;
    makeSlices(message.planes);
  },
  state(message) {
    if (message.running && !running) chart.clear();
    if (message.running || running) chart.add(message.loss);
    running = message.running;
    shown.pixelMm = message.pixel_mm;
    showPose(message.xi);
    at("loss").textContent = message.loss === null ? "–" : message.loss.toPrecision(5);
    at("similarity").value = message.similarity;
    document.body.dataset.running = running;
    document.body.dataset.version = message.version;
    notify(running ? `registering: step ${message.steps}` : message.message);
    at("stop").disabled = !running;
    for (const id of ["register", "reset", "similarity", "strategy"]) at(id).disabled = running;
    for (const input of document.querySelectorAll(".slider input")) input.disabled = running;
    at("matrix").textContent = message.world_to_camera
      .map((row) => row.map((value) => value.toFixed(4).padStart(11)).join(" ")).join("\n");
    if (message.drawing) {
      at("drawing").src = `data:image/svg+xml,${encodeURIComponent(message.drawing)}`;
      at("geometry").textContent = message.geometry;
      message.letters.forEach((letter, side) => (at(["left", "top", "right", "bottom"][side]).textContent = letter));
    }
  },
  error(message) {
    notify(message.text, true);
  },
};

function notify(text, bad = false) {
  at("message").textContent = text;
  at("message").classList.toggle("bad", bad);
}

function receivePicture(buffer) {
  const head = new DataView(buffer);
  const kind = kinds[head.getUint8(0)];
  const picture = {
    rows: head.getUint32(8, true),
    cols: head.getUint32(12, true),
    rowMm: head.getFloat32(16, true),
    colMm: head.getFloat32(20, true),
    grey: new Uint8Array(buffer, 24),
  };
  if (kind === "xray") {
    const size = shownSize(picture);
    shown.scale = size.cols / picture.cols;
    shown.xray = resized(picture, size);
    view.width = size.cols;
    view.height = size.rows;
    fit();
  } else if (kind === "drr") {
    shown.drr = resized(picture, shown.xray);
    draw();
    view.dataset.poseVersion = head.getUint32(4, true);
    send({ type: "drawn" });
  } else {
    drawSlice(kind, picture);
  }
}

// ---- the picture

function draw() {
  if (!shown.xray || !shown.drr) return;
  view.getContext("2d").putImageData(composed(shown.xray, shown.drr, shown.mode, opacity[shown.mode], shown.window), 0, 0);
}

function fit() {
  const { clientWidth, clientHeight } = at("frame");
  const scale = Math.min(clientWidth / view.width, clientHeight / view.height);
  view.style.width = `${view.width * scale}px`;
  view.style.height = `${view.height * scale}px`;
}

function setMode(mode) {
  shown.mode = mode;
  for (const button of at("modes").children) {
    button.setAttribute("aria-checked", button.dataset.mode === mode);
    button.tabIndex = button.dataset.mode === mode ? 0 : -1;
  }
  at("opacity").disabled = !(mode in opacity);
  at("opacity").value = opacity[mode] ?? 1;
  draw();
}

function setOpacity(value) {
  if (!(shown.mode in opacity)) return;
  opacity[shown.mode] = Math.min(1, Math.max(0, value));
  at("opacity").value = opacity[shown.mode];
  draw();
}

function setWindow({ level, width }) {
  shown.window = { level: Math.min(256, Math.max(0, level)), width: Math.min(512, Math.max(8, width)) };
  at("level").value = shown.window.level;
  at("width").value = shown.window.width;
  draw();
}

// ---- the pose by sliders

const sliders = AXES.map(({ name, unit, reach, step }, axis) => {
  const label = document.createElement("label");
  label.className = "slider";
  const title = document.createElement("span");
  title.textContent = name;
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min: -reach, max: reach, step, value: 0, id: `axis-${axis}` });
  const number = document.createElement("input");
  Object.assign(number, { type: "number", step, value: 0 });
  number.setAttribute("aria-label", `${name} in ${unit}`);
  const mark = document.createElement("span");
  mark.textContent = unit;
  label.append(title, range, number, mark);
  at("sliders").append(label);
  range.addEventListener("input", () => place(axis, range.valueAsNumber));
  number.addEventListener("change", () => place(axis, number.valueAsNumber));
  return { range, number, value: 0 };
});

function place(axis, value) {
  if (!Number.isFinite(value) || running) return;
  sliders[axis].value = value;
  sliders[axis].number.value = fixed(value);
  sliders[axis].range.value = value;
  placed = sliders.map((slider) => slider.value);
  schedule();
}

function showPose(xi) {
  if (placed) return; // newer than the server's
  sliders.forEach((slider, axis) => {
    slider.value = xi[axis];
    if (document.activeElement !== slider.number || running) slider.number.value = fixed(xi[axis]);
    if (!slider.range.matches(":active")) slider.range.value = xi[axis];
  });
}

// ---- the pose by mouse

let grip = null;

view.addEventListener("pointerdown", (event) => {
  grip = {
    x: event.clientX,
    y: event.clientY,
    turn: event.shiftKey || event.button === 2,
    roll: event.ctrlKey,
    window: event.altKey,
  };
  view.setPointerCapture(event.pointerId);
});
view.addEventListener("pointermove", (event) => {
  if (!grip) return;
  const dx = event.clientX - grip.x;
  const dy = event.clientY - grip.y;
  Object.assign(grip, { x: event.clientX, y: event.clientY });
  if (grip.window) {
    setWindow({ level: shown.window.level + dy / 2, width: shown.window.width + dx });
  } else if (grip.roll) {
    nudge({ 2: dx * DEGREES_PER_PIXEL });
  } else if (grip.turn) {
    // What faces the source follows the mouse.
    nudge({ 0: dy * DEGREES_PER_PIXEL, 1: -dx * DEGREES_PER_PIXEL });
  } else {
    const mm = (shown.pixelMm / shown.scale) * (view.width / view.clientWidth);
    nudge({ 3: dx * mm, 4: dy * mm });
  }
});
for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, () => (grip = null));
view.addEventListener("dblclick", () => setWindow(WHOLE));
view.addEventListener("contextmenu", (event) => event.preventDefault());
view.addEventListener("wheel", (event) => {
  event.preventDefault();
  nudge({ 5: Math.sign(event.deltaY) * (event.altKey ? 0.5 : 5) });
}, { passive: false });

// ---- slices of the CT

function makeSlices(planes) {
  at("slices").replaceChildren(...planes.map((plane) => {
    const box = document.createElement("label");
    box.className = "slice";
    const frame = document.createElement("div");
    const canvas = document.createElement("canvas");
    canvas.id = `slice-${plane}`;
    frame.append(canvas);
    const range = document.createElement("input");
    Object.assign(range, { type: "range", min: 0, max: 1, step: 0.002, value: 0.5 });
    range.addEventListener("input", () => send({ type: "slice", plane, share: range.valueAsNumber }));
    box.append(frame, plane, range);
    return box;
  }));
}

function drawSlice(plane, picture) {
  const canvas = at(`slice-${plane}`);
  canvas.width = picture.cols;
  canvas.height = picture.rows;
  canvas.getContext("2d").drawImage(toCanvas(picture), 0, 0);
  const { clientWidth, clientHeight } = canvas.parentElement;
  const [width, height] = [picture.cols * picture.colMm, picture.rows * picture.rowMm];
  const scale = Math.min(clientWidth / width, clientHeight / height);
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
}

// ---- buttons and keys

function fill(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
}

function describeStrategy() {
  at("strategy-text").textContent = strategies[at("strategy").value];
}

/** A number as text, without the minus of what rounds to zero. */
function fixed(value) {
  return value.toFixed(2).replace(/^-(0\.00)$/, "$1");
}

const register = () => running || send({ type: "register", strategy: at("strategy").value });
const stop = () => running && send({ type: "stop" });
const reset = () => running || send({ type: "reset" });
const save = () => at("save").hidden || send({ type: "save" });

at("register").addEventListener("click", register);
at("stop").addEventListener("click", stop);
at("reset").addEventListener("click", reset);
at("save").addEventListener("click", save);
at("similarity").addEventListener("change", () => send({ type: "choose", similarity: at("similarity").value }));
at("strategy").addEventListener("change", describeStrategy);
at("opacity").addEventListener("input", () => setOpacity(at("opacity").valueAsNumber));
for (const id of ["level", "width"]) {
  at(id).addEventListener("input", () => setWindow({ ...shown.window, [id]: at(id).valueAsNumber }));
}
at("modes").append(...MODES.map((mode) => {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: mode });
  button.dataset.mode = mode;
  button.setAttribute("role", "radio");
  button.addEventListener("click", () => setMode(mode));
  return button;
}));

/** Whether the control that has the focus wants the key for itself. */
function typesIn({ target, key }) {
  if (key === "Escape") return false;
  if (target.matches('input[type="number"], select')) return true;
  return target.matches('input[type="range"]') && /^(Arrow|Page|Home|End)/.test(key);
}

document.addEventListener("keydown", (event) => {
  if (typesIn(event)) return;
  if (event.ctrlKey || event.metaKey) {
    if (event.code !== "KeyS") return;
    save();
  } else if (event.code in MOVES) {
    const [axis, sign] = MOVES[event.code];
    nudge({ [axis]: sign * (event.shiftKey ? 5 : event.altKey ? 0.1 : 1) });
  } else if (event.key >= "1" && event.key <= String(MODES.length)) {
    setMode(MODES[event.key - 1]);
  } else if (event.key === "[" || event.key === "]") {
    setOpacity(opacity[shown.mode] + (event.key === "]" ? 0.05 : -0.05));
  } else if (event.code === "KeyR") {
    register();
  } else if (event.key === "Escape") {
    stop();
  } else if (event.key === "Home") {
    reset();
  } else {
    return;
  }
  event.preventDefault();
});

new ResizeObserver(fit).observe(at("frame"));
setMode("blend");
connect();
