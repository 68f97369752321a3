"use strict";
// The opacity of the rendered CT over the X-ray.
for (const box of document.querySelectorAll(".compare")) {
  const front = box.closest("figure").querySelector(".front");
  const show = () => { front.style.opacity = box.querySelector("input").value; };
  box.querySelector("input").addEventListener("input", show);
  show();
}
// The scene turns: every element holds its points in 3D.
for (const scene of document.querySelectorAll("svg.scene")) {
  const { width, height } = scene.viewBox.baseVal;
  const margin = 24;
  const parts = [...scene.querySelectorAll("[data-p]")].map((part) => {
    const numbers = part.dataset.p.split(" ").map(Number);
    const points = [];
    for (let i = 0; i < numbers.length; i += 3) points.push(numbers.slice(i, i + 3));
    return { part, points };
  });
  let turn = Number(scene.dataset.turn);
  let tilt = Number(scene.dataset.tilt);
  const draw = () => {
    const [ct, st, cp, sp] = [Math.cos(turn), Math.sin(turn), Math.cos(tilt), Math.sin(tilt)];
    const flat = ([x, y, z]) => [ct * x - st * y, -st * sp * x - ct * sp * y - cp * z];
    const ends = parts.filter(({ part }) => part.tagName === "line").flatMap(({ points }) => points.map(flat));
    const [[left, right], [top, bottom]] = [0, 1].map((k) => {
      const places = ends.map((end) => end[k]);
      return [Math.min(...places), Math.max(...places)];
    });
    const fit = Math.min((width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top));
    const scale = Math.min(Number(scene.dataset.scale), fit);
    const page = (point) => {
      const [x, y] = flat(point);
      return [width / 2 + scale * (x - (left + right) / 2), height / 2 + scale * (y - (top + bottom) / 2)];
    };
    for (const { part, points } of parts) {
      const [a, b, c] = points.length > 3 ? [] : points.map(page);
      if (part.tagName === "line") {
        part.setAttribute("x1", a[0]); part.setAttribute("y1", a[1]);
        part.setAttribute("x2", b[0]); part.setAttribute("y2", b[1]);
      } else if (part.tagName === "text") {
        part.setAttribute("x", a[0]); part.setAttribute("y", a[1]);
      } else if (part.tagName === "image") {
        part.setAttribute("transform", `matrix(${b[0] - a[0]} ${b[1] - a[1]} ${c[0] - a[0]} ${c[1] - a[1]} ${a[0]} ${a[1]})`);
      } else {
        part.setAttribute("d", points.map((point) => `M${page(point).map((v) => v.toFixed(1)).join(" ")}h0`).join(""));
      }
    }
  };
  const by = (across, up) => {
    turn += across;
    tilt = Math.min(1.57, Math.max(-1.57, tilt + up));
    draw();
  };
  scene.addEventListener("pointerdown", (event) => scene.setPointerCapture(event.pointerId));
  scene.addEventListener("pointermove", (event) => {
    if (event.buttons & 1) by(event.movementX * 0.01, event.movementY * 0.01);
  });
  scene.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (!step) return;
    by(...step);
    event.preventDefault();
  });
}
