// Choosing points on a map: with a pointer a box or an outline is dragged, with the keyboard a cross sets its corners.
// The chosen crops are the value of a field of the page, so that both maps of a pair show them.
const STEP = 8, FAR = 40; // units of the map that a key moves the cross
const CLICK = 4; // pixels that a pointer moves at most in a click
const NEAR = 15; // units of the map within which the cross is on a point
const mapOf = (node) => node.closest?.('svg[data-select]');
const pointsOf = (map) => all('circle', map);
const shapeOf = (map) => $('[name="shape"]', sectionOf(map)).value;
const centerOf = (point) => [point.cx.baseVal.value, point.cy.baseVal.value];

function chosenIn(section) {
  const field = $('[name="rows"]', section);
  return field && field.value ? field.value.split(',') : [];
}

function markChosen(section) {
  if (!$('[name="rows"]', section)) return;
  const chosen = new Set(chosenIn(section));
  for (const point of all('svg[data-select] circle', section)) point.classList.toggle('reid-chosen', chosen.has(point.dataset.value));
}

function drawArea(map, corners) {
  let area = $('.reid-area', map);
  if (!corners.length) { area?.remove(); return; }
  if (!area) {
    area = document.createElementNS('http://www.w3.org/2000/svg', 'polygon');
    area.setAttribute('class', 'reid-area');
    map.append(area);
  }
  area.setAttribute('points', corners.map((corner) => corner.map((one) => one.toFixed(1)).join(',')).join(' '));
}

const boxOf = ([left, top], [right, bottom]) => [[left, top], [right, top], [right, bottom], [left, bottom]];

// Whether a point lies in an outline: a line from it to the right crosses the outline an odd number of times.
function isInside([x, y], corners) {
  let inside = false;
  corners.forEach(([ax, ay], i) => {
    const [bx, by] = corners[(i + 1) % corners.length];
    if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) inside = !inside;
  });
  return inside;
}

const pointsIn = (map, corners) => pointsOf(map).filter((point) => isInside(centerOf(point), corners));

function choose(map, corners, adds) {
  const section = sectionOf(map), found = pointsIn(map, corners).map((point) => point.dataset.value);
  const kept = adds || $('[name="adds"]', section).checked ? chosenIn(section) : [];
  drawArea(map, []);
  setChosen(section, [...new Set([...kept, ...found])]);
}

function setChosen(section, rows) {
  $('[name="rows"]', section).value = rows.join(',');
  markChosen(section);
  ask(section, 'choose', {reveal: true});
}

element.addEventListener('pointerdown', (event) => {
  const map = mapOf(event.target);
  if (!map || event.button || (event.pointerType === 'touch' && !$('[name="finger"]', sectionOf(map)).checked)) return;
  const place = (moved) => {
    const at = new DOMPoint(moved.clientX, moved.clientY).matrixTransform(map.getScreenCTM().inverse());
    return [at.x, at.y];
  };
  const corners = [place(event)];
  let isDrawn = false;
  const outline = () => shapeOf(map) === 'box' ? boxOf(corners[0], corners.at(-1)) : corners;
  const end = (ended) => {
    map.onpointermove = map.onpointerup = map.onpointercancel = null;
    if (isDrawn && ended.type === 'pointerup') choose(map, outline(), event.shiftKey);
    else drawArea(map, []);
  };
  map.onpointermove = (moved) => {
    if (!isDrawn) {
      if (Math.hypot(moved.clientX - event.clientX, moved.clientY - event.clientY) < CLICK) return;
      isDrawn = true;
      map.setPointerCapture(event.pointerId); // from now on it is no click on a point
      getSelection().removeAllRanges();
    }
    corners.push(place(moved));
    drawArea(map, outline());
  };
  map.onpointerup = map.onpointercancel = end;
});

function moveCross(map, cross) {
  const side = map.viewBox.baseVal.width;
  map.cross = cross.map((one) => Math.min(Math.max(one, 0), side));
  let mark = $('.reid-cross', map);
  if (!mark) {
    mark = document.createElementNS('http://www.w3.org/2000/svg', 'path');
    mark.setAttribute('class', 'reid-cross');
    map.append(mark);
  }
  const [x, y] = map.cross;
  mark.setAttribute('d', `M${x - 9} ${y}H${x + 9}M${x} ${y - 9}V${y + 9}`);
}

function showCross(map) {
  moveCross(map, map.cross ?? [map.viewBox.baseVal.width / 2, map.viewBox.baseVal.height / 2]);
}

function nearestTo(map) {
  const away = (point) => Math.hypot(...centerOf(point).map((one, axis) => one - map.cross[axis]));
  const nearest = pointsOf(map).reduce((best, one) => !best || away(one) < away(best) ? one : best, null);
  return nearest && away(nearest) <= NEAR ? nearest : null;
}

const keyCorners = (map, more = []) => {
  const corners = [...(map.corners ?? []), ...more];
  return shapeOf(map) === 'box' && corners.length ? boxOf(corners[0], corners.at(-1)) : corners;
};

// What a key does on a map; whether it was one of the map.
function pressed(map, event) {
  const by = event.shiftKey ? FAR : STEP, section = sectionOf(map);
  const moves = {ArrowLeft: [-by, 0], ArrowRight: [by, 0], ArrowUp: [0, -by], ArrowDown: [0, by]};
  if (event.ctrlKey || event.altKey || event.metaKey) return false;
  if (!$('.reid-cross', map)) showCross(map); // a pointer has brought the focus here
  if (moves[event.key]) moveCross(map, map.cross.map((one, axis) => one + moves[event.key][axis]));
  else if (event.key === ' ') {
    map.corners = [...(map.corners ?? []), map.cross];
    if (shapeOf(map) === 'box' && map.corners.length === 2) closeArea(map);
  } else if (event.key === 'Enter') {
    if (map.corners?.length > 2) closeArea(map);
    else if (!map.corners?.length) nearestTo(map)?.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  } else if (event.key === 'Escape') {
    if (map.corners?.length) map.corners = [];
    else if (chosenIn(section).length) setChosen(section, []);
    else return false;
  } else return false;
  drawArea(map, keyCorners(map, map.corners?.length ? [map.cross] : []));
  tellCross(map);
  return true;
}

function closeArea(map) {
  const corners = keyCorners(map);
  map.corners = [];
  choose(map, corners, false);
}

function tellCross(map) {
  const line = $('[data-map-status]', sectionOf(map)), point = nearestTo(map);
  const inside = map.corners?.length ? `${pointsIn(map, keyCorners(map, [map.cross])).length} crops inside; ` : '';
  line.textContent = inside + (point ? `on a crop: ${point.textContent}` : 'on no crop');
}

element.addEventListener('keydown', (event) => {
  const map = mapOf(event.target);
  if (map && pressed(map, event)) event.preventDefault();
});
element.addEventListener('focusin', (event) => {
  const map = mapOf(event.target);
  if (map && map.matches(':focus-visible')) showCross(map);
});
element.addEventListener('focusout', (event) => {
  const map = mapOf(event.target);
  if (map) { $('.reid-cross', map)?.remove(); map.corners = []; drawArea(map, []); }
});
element.addEventListener('click', (event) => {
  if (event.target.closest('[data-unchoose]')) setChosen(sectionOf(event.target), []);
});
