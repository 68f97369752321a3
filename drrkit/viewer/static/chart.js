// The loss over the steps of a registration.

export class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.values = [];
    this.draw();
  }

  clear() {
    this.values = [];
    this.draw();
  }

  add(value) {
    if (!Number.isFinite(value)) return;
    this.values.push(value);
    this.draw();
  }

  draw() {
    const { canvas, values } = this;
    const { width, height } = canvas;
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    context.font = "20px system-ui, sans-serif";
    context.fillStyle = "#98a3b0";
    if (values.length === 0) {
      context.textAlign = "center";
      context.fillText("the loss, once registering", width / 2, height / 2 + 7);
      return;
    }
    const low = Math.min(...values);
    const high = Math.max(...values);
    const margin = 14;
    const x = (i) => margin + (i / Math.max(1, values.length - 1)) * (width - 2 * margin);
    const y = (v) => height - margin - ((v - low) / (high - low || 1)) * (height - 2 * margin);
    context.beginPath();
    values.forEach((value, i) => (i ? context.lineTo(x(i), y(value)) : context.moveTo(x(i), y(value))));
    context.strokeStyle = "#4c9aff";
    context.lineWidth = 3;
    context.stroke();
    context.beginPath();
    context.arc(x(values.length - 1), y(values.at(-1)), 5, 0, 2 * Math.PI);
    context.fillStyle = "#4c9aff";
    context.fill();
    context.fillStyle = "#98a3b0";
    context.textAlign = "right";
    const fall = values.length > 1 ? `${high.toPrecision(4)} to ${low.toPrecision(4)}` : high.toPrecision(4);
    context.fillText(fall, width - margin, margin + 14);
  }
}
