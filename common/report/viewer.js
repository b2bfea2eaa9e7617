// SPDX-License-Identifier: Apache-2.0
// Slice viewer: volumes are unpacked from sheets of slices, any plane is drawn from them on a canvas.
(() => {
  "use strict";
  const root = document.getElementById("viewer");
  const data = JSON.parse(document.getElementById("viewer-data").textContent);
  const PLANES = ["Sagittal", "Coronal", "Axial"];
  const LETTERS = [["L", "R"], ["P", "A"], ["I", "S"]];
  const VIEWS = ["Image", "Fixed", "Difference", "Checkerboard", "Swipe"];
  const ALL = "All side by side";
  const FIXED_LINE = "#2dd4bf", OWN_LINE = "#fb923c";
  const state = { pair: 0, image: 1, plane: 2, view: "Image", outlines: false, swipe: 0.5, slices: [] };
  let volumes = new Map();
  let request = 0;
  // Where the picture lies inside its frame, in parts of it; for the divider of the swipe.
  let area = { columns: 1, left: 0, width: 1 };

  const make = (tag, attributes = {}, text = "") => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.textContent = text;
    return element;
  };
  const pair = () => data.pairs[state.pair];
  const across = (plane) => [0, 1, 2].filter((axis) => axis !== plane);
  const isFlat = () => pair().shape[2] === 1;

  // --- volumes ---
  const unpack = (uri, [width, height, depth]) => new Promise((resolve, reject) => {
    const picture = new Image();
    picture.onerror = () => reject(new Error("a sheet of slices cannot be read"));
    picture.onload = () => {
      const columns = Math.max(1, Math.ceil(Math.sqrt(depth * height / width)));
      const sheet = make("canvas");
      sheet.width = picture.naturalWidth;
      sheet.height = picture.naturalHeight;
      const context = sheet.getContext("2d", { willReadFrequently: true });
      context.drawImage(picture, 0, 0);
      const volume = new Uint8Array(width * height * depth);
      for (let z = 0; z < depth; z++) {
        const left = (z % columns) * width, top = Math.floor(z / columns) * height;
        const bytes = context.getImageData(left, top, width, height).data;
        const start = z * width * height;
        for (let i = 0; i < width * height; i++) volume[start + i] = bytes[4 * i];
      }
      resolve(volume);
    };
    picture.src = uri;
  });
  const volume = (uri) => {
    if (!uri) return Promise.resolve(null);
    if (!volumes.has(uri)) volumes.set(uri, unpack(uri, pair().shape));
    return volumes.get(uri);
  };
  const scan = async (entry) => ({ image: await volume(entry.image), label: await volume(entry.label) });

  // One slice, rows from top to bottom, the second axis upwards.
  const slice = (source, plane, index) => {
    const shape = pair().shape, strides = [1, shape[0], shape[0] * shape[1]];
    const [a, b] = across(plane), width = shape[a], height = shape[b];
    const values = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const start = index * strides[plane] + (height - 1 - y) * strides[b];
      for (let x = 0; x < width; x++) values[y * width + x] = source[start + x * strides[a]];
    }
    return { values, width, height };
  };

  // --- drawing ---
  const colour = (view, fixed, own, x, y, part) => {
    if (view === "Difference") {
      const difference = 2 * (own - fixed);
      return difference > 0 ? [difference, 0.55 * difference, 0.15 * difference]
        : [-0.25 * difference, -0.6 * difference, -difference];
    }
    const fromFixed = view === "Fixed" || (view === "Checkerboard" && (Math.floor(8 * x) + Math.floor(8 * y)) % 2 === 0)
      || (view === "Swipe" && x < part);
    const grey = fromFixed ? fixed : own;
    return [grey, grey, grey];
  };
  const painted = (view, fixed, own) => {
    const { width, height } = fixed;
    const picture = make("canvas");
    picture.width = width;
    picture.height = height;
    const context = picture.getContext("2d");
    const content = context.createImageData(width, height);
    const longest = Math.max(width, height);
    for (let i = 0; i < width * height; i++) {
      const column = i % width, row = Math.floor(i / width);
      const x = view === "Swipe" ? (column + 0.5) / width : column / longest;
      const rgb = colour(view, fixed.values[i], own.values[i], x, row / longest, state.swipe);
      content.data.set([rgb[0], rgb[1], rgb[2], 255], 4 * i);
    }
    context.putImageData(content, 0, 0);
    return picture;
  };
  const outline = (context, label, place, style) => {
    const { values, width, height } = label;
    const sx = place.width / width, sy = place.height / height;
    context.beginPath();
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const own = values[y * width + x], left = place.x + x * sx, top = place.y + y * sy;
      if (x + 1 < width && values[y * width + x + 1] !== own) {
        context.moveTo(left + sx, top);
        context.lineTo(left + sx, top + sy);
      }
      if (y + 1 < height && values[(y + 1) * width + x] !== own) {
        context.moveTo(left, top + sy);
        context.lineTo(left + sx, top + sy);
      }
    }
    context.strokeStyle = style;
    context.lineWidth = Math.max(1, window.devicePixelRatio || 1);
    context.stroke();
  };
  const extent = (plane) => across(plane).map((axis) => pair().shape[axis] * pair().spacing[axis]);

  const drawTile = (context, frame, tile, fixed, own) => {
    const [w, h] = extent(state.plane);
    const scale = Math.min(frame.width / w, frame.height / h);
    const place = { width: w * scale, height: h * scale };
    place.x = frame.x + (frame.width - place.width) / 2;
    place.y = frame.y + (frame.height - place.height) / 2;
    area = { ...area, left: (place.x - frame.x) / frame.width, width: place.width / frame.width };
    const index = state.slices[state.plane];
    const cut = (source) => slice(source, state.plane, index);
    context.imageSmoothingQuality = "high";
    context.drawImage(painted(tile.view, cut(fixed.image), cut(own.image)), place.x, place.y, place.width, place.height);
    if (state.outlines) {
      if (fixed.label) outline(context, cut(fixed.label), place, FIXED_LINE);
      if (own.label && tile.view !== "Fixed") outline(context, cut(own.label), place, OWN_LINE);
    }
    if (tile.view === "Swipe") {
      context.fillStyle = "#ffffff";
      context.fillRect(place.x + state.swipe * place.width - 1, place.y, 2, place.height);
    }
    write(context, frame, tile.view === "Swipe" ? `Fixed | ${tile.name}` : tile.name);
  };
  const write = (context, frame, name) => {
    // A dark rim keeps letters readable on bright tissue.
    const put = (text, x, y) => {
      context.strokeStyle = "#000000";
      context.lineWidth = 3 * (window.devicePixelRatio || 1);
      context.lineJoin = "round";
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    };
    const size = Math.max(13, Math.round(13 * (window.devicePixelRatio || 1)));
    context.font = `${size}px system-ui, sans-serif`;
    context.fillStyle = "#d5dbe0";
    context.textBaseline = "top";
    context.textAlign = "left";
    let text = name;
    while (text.length > 3 && context.measureText(text).width > frame.width - 12) text = text.slice(0, -2) + "…";
    put(text, frame.x + 6, frame.y + 5);
    if (!pair().letters) return;
    const [a, b] = across(state.plane), middle = frame.y + frame.height / 2, centre = frame.x + frame.width / 2;
    context.fillStyle = "#b8c2c9";
    context.textBaseline = "middle";
    put(LETTERS[a][0], frame.x + 6, middle);
    context.textAlign = "right";
    put(LETTERS[a][1], frame.x + frame.width - 6, middle);
    context.textAlign = "center";
    context.textBaseline = "bottom";
    put(LETTERS[b][0], centre, frame.y + frame.height - 3);
  };

  const tiles = () => {
    if (state.view === "Fixed") return [{ name: "Fixed", view: "Fixed", image: 0 }];
    const images = pair().images.map((entry, image) => ({ name: entry.name, view: state.view, image }));
    if (state.image < images.length) return [images[state.image]];
    return state.view === "Image" ? [{ name: "Fixed", view: "Fixed", image: 0 }, ...images] : images;
  };
  const draw = async () => {
    const ticket = ++request;
    const shown = tiles();
    const fixed = await scan(pair().fixed);
    const others = await Promise.all(shown.map((tile) => scan(pair().images[tile.image])));
    if (ticket !== request) return;
    // The frame keeps its proportions when the plane changes, so that nothing below it moves.
    const planes = isFlat() ? [2] : [0, 1, 2];
    const ratio = Math.max(...planes.map((plane) => extent(plane)[1])) / Math.max(...planes.map((plane) => extent(plane)[0]));
    canvas.style.maxWidth = shown.length > 1 ? "none" : "";
    const width = Math.max(1, Math.round(canvas.clientWidth * (window.devicePixelRatio || 1)));
    const columns = shown.length === 1 ? 1 : canvas.clientWidth < 480 ? 2 : Math.min(4, Math.ceil(Math.sqrt(shown.length)));
    area.columns = columns;
    const size = { width: width / columns, height: (width / columns) * ratio };
    canvas.width = width;
    canvas.height = Math.round(size.height * Math.ceil(shown.length / columns));
    const context = canvas.getContext("2d");
    context.fillStyle = "#000000";
    context.fillRect(0, 0, canvas.width, canvas.height);
    shown.forEach((tile, k) => {
      const frame = { x: (k % columns) * size.width, y: Math.floor(k / columns) * size.height, ...size };
      drawTile(context, frame, tile, fixed, others[k]);
    });
    describe(shown);
  };
  const describe = (shown) => {
    const index = state.slices[state.plane];
    const plane = isFlat() ? "" : `${PLANES[state.plane]} slice ${index + 1} of ${pair().shape[state.plane]}`;
    output.textContent = plane;
    slider.setAttribute("aria-valuetext", plane);
    canvas.setAttribute("aria-label", `${shown.map((tile) => tile.name).join(", ")}: ${state.view}. ${plane}. ${pair().caption}`);
    keys.hidden = !state.outlines;
    root.dataset.drawn = [request, state.pair, state.image, state.plane, state.view, index, state.outlines].join(" ");
  };
  const update = () => draw().catch((error) => {
    output.textContent = `Cannot be shown: ${error.message}.`;
    console.error(error);
  });

  // --- controls ---
  const choice = (name, title, options, chosen, onChange) => {
    const group = make("fieldset", { class: "choice" });
    group.append(make("legend", {}, title));
    options.forEach((text, k) => {
      const label = make("label");
      const input = make("input", { type: "radio", name: `viewer-${name}`, value: String(k) });
      input.checked = k === chosen;
      input.addEventListener("change", () => { onChange(k); update(); });
      label.append(input, make("span", {}, text));
      group.append(label);
    });
    return group;
  };
  const listed = (title, options, onChange) => {
    const label = make("label", { class: "listed" });
    const select = make("select");
    options.forEach((text, k) => select.append(make("option", { value: String(k) }, text)));
    select.addEventListener("change", () => { onChange(Number(select.value)); update(); });
    label.append(make("span", {}, title), select);
    return label;
  };
  const move = (steps) => {
    const last = pair().shape[state.plane] - 1;
    state.slices[state.plane] = Math.min(last, Math.max(0, state.slices[state.plane] + steps));
    slider.value = String(state.slices[state.plane]);
    update();
  };
  const setPlane = (plane) => {
    state.plane = plane;
    slider.max = String(pair().shape[plane] - 1);
    slider.value = String(state.slices[plane]);
  };
  const setPair = (index) => {
    state.pair = index;
    volumes = new Map();
    state.slices = pair().shape.map((size) => Math.floor(size / 2));
    const names = pair().images.map((entry) => entry.name);
    if (names.length > 2) names.push(ALL);
    state.image = Math.min(state.image, names.length - 1);
    const flat = isFlat();
    setPlane(flat ? 2 : state.plane);
    row.hidden = flat;
    const planes = choice("plane", "Plane", [...PLANES].reverse(), 2 - state.plane, (k) => setPlane(2 - k));
    planes.hidden = flat;
    const outlines = make("label", { class: "tick" });
    const box = make("input", { type: "checkbox" });
    box.checked = state.outlines;
    box.addEventListener("change", () => { state.outlines = box.checked; update(); });
    outlines.append(box, make("span", {}, "Label outlines"));
    outlines.hidden = !pair().fixed.label;
    controls.replaceChildren(
      choice("image", names.length > 2 ? "Method" : "Image", names, state.image, (k) => { state.image = k; }),
      choice("view", "View", VIEWS, VIEWS.indexOf(state.view), (k) => { state.view = VIEWS[k]; }),
      planes, outlines,
    );
    const coarse = pair().shape.some((size, axis) => size !== pair().full[axis]);
    caption.textContent = coarse ? `Shown at ${pair().shape.join(" × ")} voxels, of ${pair().full.join(" × ")}.` : "";
  };

  const controls = make("div", { class: "controls" });
  const canvas = make("canvas", { tabindex: "0", role: "img" });
  const row = make("div", { class: "slices" });
  const slider = make("input", { type: "range", min: "0", step: "1", "aria-label": "Slice" });
  const output = make("output", { "aria-live": "polite" });
  const keys = make("p", { class: "note" });
  const caption = make("p", { class: "note" });
  for (const [style, text] of [[FIXED_LINE, "labels of the fixed image"], [OWN_LINE, "of the image shown"]]) {
    const key = make("span", { class: "key" });
    key.style.background = style;
    keys.append(key, text + " ");
  }
  slider.addEventListener("input", () => { state.slices[state.plane] = Number(slider.value); update(); });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10 }[event.key];
    if (steps === undefined || isFlat()) return;
    event.preventDefault();
    move(steps);
  });
  let dragged = null;
  const drag = (event) => {
    const box = canvas.getBoundingClientRect();
    if (state.view === "Swipe") {
      const part = Math.max(0, ((event.clientX - box.left) / box.width) * area.columns) % 1;
      state.swipe = Math.min(1, Math.max(0, (part - area.left) / area.width));
      update();
    } else if (!isFlat()) {
      const steps = Math.trunc((event.clientX - dragged) / 6);
      if (steps) {
        dragged += 6 * steps;
        move(steps);
      }
    }
  };
  canvas.addEventListener("pointerdown", (event) => {
    dragged = event.clientX;
    canvas.setPointerCapture(event.pointerId);
    if (state.view === "Swipe") drag(event);
  });
  canvas.addEventListener("pointermove", (event) => { if (dragged !== null) drag(event); });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { dragged = null; });
  window.addEventListener("resize", update);

  row.append(slider, output);
  if (data.pairs.length > 1) root.append(listed("Pair", data.pairs.map((entry) => entry.caption), setPair));
  root.append(controls, canvas, row, keys, caption);
  setPair(0);
  update();
})();
