// The page in the browser. Forms hold the state; the address repeats it; one message asks the server for new parts.
// `element`, `trigger` and the others are given by gradio to the script of an HTML component.
const LONGEST_WAIT = 90000; // milliseconds, after which an answer is given up
const LOOK_AGAIN = 10000; // milliseconds between two looks for changes of the gallery
const MOST_BYTES = 10 * 2 ** 20;
const MOST_IMAGES = 8;
const CONTROLS = '[data-set], [data-action]:not(form)'; // what asks when it is clicked; a form asks when a field changes
const root = element;
const lanes = {}; // by page: {busy, timer, waiting}
let sequence = 0, isConnected = false;
const $ = (selector, within = root) => within.querySelector(selector);
const all = (selector, within = root) => [...within.querySelectorAll(selector)];
const sectionOf = (node) => node.closest('[data-page]');
const sectionNamed = (name) => $(`[data-page="${CSS.escape(name)}"]`);
const formOf = (section) => $('form', section);

function valuesOf(section) {
  const values = {};
  for (const field of all('[name]', section)) {
    if (field.type === 'radio') { if (field.checked) values[field.name] = field.value; continue; }
    if (field.type === 'checkbox' && field.dataset.list !== undefined) {
      values[field.name] ??= [];
      if (field.checked) values[field.name].push(field.value);
    } else if (field.type === 'checkbox') values[field.name] = field.checked;
    else if (field.dataset.list !== undefined) values[field.name] = field.value ? field.value.split(',') : [];
    else values[field.name] = field.value;
  }
  return values;
}

const defaultsOf = (section) => section.initial ??= valuesOf(section); // the address leaves them out
all('section[data-page]').forEach(defaultsOf);
const asText = (value) => Array.isArray(value) ? value.join(',') : value === true ? '1' : value === false ? '0' : String(value ?? '');

function writeAddress(section, push) {
  const known = new URLSearchParams(), defaults = defaultsOf(section), values = valuesOf(section);
  if (section.dataset.page !== 'search') known.set('page', section.dataset.page);
  for (const [name, value] of Object.entries(values)) {
    const field = $(`[name="${name}"]`, section);
    if (field.dataset.volatile === undefined && asText(value) !== asText(defaults[name])) known.set(name, asText(value));
  }
  const theme = new URLSearchParams(location.search).get('__theme');
  if (theme) known.set('__theme', theme);
  const address = location.pathname + (known.size ? '?' + known : '');
  if (address !== location.pathname + location.search) history[push ? 'pushState' : 'replaceState']({}, '', address);
}

function fill(section, values) {
  for (const field of all('[name]', section)) {
    if (!(field.name in values)) continue;
    const text = asText(values[field.name]);
    if (field.type === 'radio') field.checked = field.value === text;
    else if (field.type === 'checkbox') {
      field.checked = field.dataset.list !== undefined ? text.split(',').includes(field.value) : text === '1';
    } else field.value = text;
    if (field.tagName === 'SELECT' && field.selectedIndex < 0) field.selectedIndex = 0; // what was chosen is gone
  }
  mark(section);
}

function mark(section) {
  for (const button of all('[data-set]', section)) {
    const field = $(`[name="${button.dataset.set}"]`, section);
    if (field) button.setAttribute('aria-pressed', String(field.value === button.dataset.value));
  }
  const query = $('[name="query"]', section);
  if (query) section.dataset.query = query.value === 'upload' ? 'upload' : 'crop';
}

// One question of a page is answered at a time, and the last one is always asked: what is shown belongs to it.
function ask(section, action, more = {}) {
  const page = section.dataset.page, lane = lanes[page] ??= {busy: 0};
  const question = {...valuesOf(section), ...more, page, action, seq: ++sequence, gallery_state: galleryState()};
  section.setAttribute('aria-busy', 'true');
  lane.last = question.seq;
  if (lane.busy) { lane.waiting = question; return; }
  send(lane, question);
}

function send(lane, question) {
  lane.busy = question.seq;
  lane.timer = setTimeout(() => {
    say(question.page, 'The page got no answer. Check that the program still runs, then try again.');
    release(lane, question.page);
  }, LONGEST_WAIT);
  if (isConnected) trigger('select', question);
  else lane.held = question;
}

// A question that is asked before the page listens is lost. So an empty one is repeated until it is answered, and
// questions wait until then.
function connect(wait = 500) {
  if (isConnected) return;
  trigger('select', {page: '', action: '', seq: 0});
  setTimeout(() => connect(Math.min(2 * wait, 8000)), wait);
}

function noteConnection() {
  if (isConnected) return;
  isConnected = true;
  for (const lane of Object.values(lanes)) {
    if (lane.held) { trigger('select', lane.held); lane.held = undefined; }
  }
}

// The head of the page and its lists of cameras follow the gallery, with what the visitor has chosen in them.
const galleryState = () => $('#reid-head').dataset.state;

function follow(answer, asking) {
  const held = document.activeElement, targets = Object.keys(answer.follow).map((id) => document.getElementById('reid-' + id));
  if (targets.some((one) => one?.contains(held))) return; // somebody types here; the next look brings it
  for (const [i, html] of Object.values(answer.follow).entries()) {
    if (!targets[i]) continue;
    const section = sectionOf(targets[i]), values = section && valuesOf(section);
    targets[i].innerHTML = html;
    if (section) fill(section, values);
  }
  $('#reid-head').dataset.state = answer.gallery_state;
  for (const section of all('section[data-load]')) {
    if (section.hidden) delete section.dataset.loaded;
    else if (section !== asking) $('#reid-changed').hidden = false;
  }
}

function release(lane, page) {
  clearTimeout(lane.timer);
  lane.busy = 0;
  lane.held = undefined;
  if (lane.waiting) { const next = lane.waiting; lane.waiting = undefined; send(lane, next); return; }
  sectionNamed(page).removeAttribute('aria-busy');
}

function say(page, text) {
  const line = $('.reid-error', sectionNamed(page));
  line.textContent = text;
  line.hidden = !text;
  if (text) line.scrollIntoView({block: 'nearest'});
}

window.reidReceive = (text) => {
  if (!text) return;
  noteConnection();
  const answer = JSON.parse(text), section = sectionNamed(answer.page), lane = lanes[answer.page];
  if (answer.follow) follow(answer, section);
  if (!section || !lane || lane.busy !== answer.seq) return;
  if (lane.last === answer.seq) show(section, answer);
  release(lane, answer.page);
};

function show(section, answer) {
  const held = document.activeElement?.closest?.(CONTROLS);
  const again = held && section.contains(held) ? {...held.dataset} : null;
  for (const [id, html] of Object.entries(answer.parts || {})) {
    const target = document.getElementById('reid-' + id);
    if (target) target.innerHTML = html;
  }
  for (const [name, value] of Object.entries(answer.fields || {})) {
    const field = $(`[name="${name}"]`, section);
    if (field) fill1(field, section, value);
  }
  if (answer.error) all('.reid-loading', section).forEach((line) => line.remove());
  if (answer.export) section.exported = answer.export;
  if (answer.document) section.saved = answer.document;
  if (answer.again) setTimeout(() => { if (!section.hidden && !lanes[answer.page].busy) ask(section, answer.again); }, 1500);
  all('[data-box]', section).forEach(markBox);
  markChosen(section);
  say(answer.page, answer.error || '');
  mark(section);
  if (again && !document.contains(held)) {
    all(CONTROLS, section)
      .find((one) => Object.entries(again).every(([key, value]) => one.dataset[key] === value))?.focus();
  }
  if (answer.parts?.['dialog-content']) $('#reid-dialog').showModal();
  $('#reid-status').textContent = answer.error || answer.status || '';
  const result = $('.reid-result', section);
  if (answer.reveal && result && result.getBoundingClientRect().top > innerHeight * 0.6) result.scrollIntoView({block: result.dataset.reveal || 'start'});
  writeAddress(section, false);
}

function fill1(field, section, value) {
  if (field.type === 'radio' || field.type === 'checkbox') fill(section, {...valuesOf(section), [field.name]: value});
  else field.value = asText(value);
}

function open(name, push) {
  $('#reid-changed').hidden = true;
  const section = sectionNamed(name) || sectionNamed('search');
  for (const other of all('section[data-page]')) other.hidden = other !== section;
  for (const link of all('[data-link]')) {
    if (link.dataset.link === section.dataset.page) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = section.dataset.page === 'search' ? 'reid' : `${section.dataset.title} · reid`;
  if (push) writeAddress(section, true);
  if (section.dataset.load && !section.dataset.loaded) { section.dataset.loaded = '1'; ask(section, section.dataset.load); }
  return section;
}

function readAddress() {
  const given = new URLSearchParams(location.search), name = given.get('page') || 'search';
  const section = sectionNamed(name) || sectionNamed('search'), before = asText(JSON.stringify(valuesOf(section)));
  const values = {...defaultsOf(section)};
  for (const [key, value] of given) if (key in values) values[key] = value;
  if (values.query === 'upload') values.query = defaultsOf(section).query; // its images are gone
  fill(section, values);
  const changed = before !== asText(JSON.stringify(valuesOf(section)));
  if (section.dataset.load && !section.dataset.loaded) open(name, false);
  else { open(name, false); if (changed) ask(section, formOf(section)?.dataset.action || section.dataset.load); }
}

root.addEventListener('click', (event) => {
  const link = event.target.closest('[data-link]');
  if (link && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
    event.preventDefault();
    open(link.dataset.link, true);
    return;
  }
  const close = event.target.closest('[data-close]');
  if (close) { $('#reid-dialog').close(); if (!close.dataset.set) return; }
  if (event.target.closest('[data-again]')) {
    const section = $('section[data-page]:not([hidden])');
    $('#reid-changed').hidden = true;
    ask(section, section.dataset.load || formOf(section).dataset.action);
    return;
  }
  if (event.target.closest('[data-logout]')) {
    fetch('/logout', {method: 'POST', redirect: 'manual'}).finally(() => location.assign('/'));
    return;
  }
  const save = event.target.closest('[data-export]');
  if (save) { download(sectionOf(save), save.dataset.export); return; }
  const button = event.target.closest(CONTROLS);
  if (!button) return;
  const section = button.dataset.in ? sectionNamed(button.dataset.in) : sectionOf(button);
  if (button.dataset.in) open(button.dataset.in, !button.dataset.set); // one step back leads to where it was clicked
  if (button.dataset.confirm && !confirm(button.dataset.confirm)) return;
  if (button.dataset.set) {
    $(`[name="${button.dataset.set}"]`, section).value = button.dataset.value;
    mark(section);
    writeAddress(section, true);
  }
  ask(section, button.dataset.action || formOf(section).dataset.action, given(button));
});

function given(button) {
  const more = {...button.dataset};
  for (const name of ['set', 'value', 'action', 'in', 'confirm', 'close']) delete more[name];
  return more;
}

root.addEventListener('change', (event) => {
  const field = event.target;
  if (field.type === 'file') {
    const files = [...field.files];
    field.value = '';
    if (field.dataset.stage !== undefined) stage(files, sectionOf(field));
    else receive(files, sectionOf(field));
    return;
  }
  if (!field.name || field.dataset.quiet !== undefined) return;
  const section = sectionOf(field);
  if (field.dataset.volatile === undefined) writeAddress(section, true);
  ask(section, field.dataset.change || formOf(section).dataset.action);
});
root.addEventListener('submit', (event) => {
  event.preventDefault();
  ask(sectionOf(event.target), event.submitter?.dataset.action || event.target.dataset.action, event.submitter ? given(event.submitter) : {});
});

async function receive(files, section) {
  const images = files.filter((file) => file.type.startsWith('image/') || /\.(jpe?g|png|bmp|webp|tiff?|gif|ppm)$/i.test(file.name) || files.length === 1);
  if (!images.length) return;
  const field = $('[name="images"]', section), known = $('[name="several"]', section).checked && field.value ? field.value.split(',') : [];
  if (images.length + known.length > MOST_IMAGES) return say(section.dataset.page, `A query holds at most ${MOST_IMAGES} images.`);
  if (images.some((file) => file.size > MOST_BYTES)) return say(section.dataset.page, 'This file is too large: an upload exceeds the maximum allowed size of 10 MB.');
  section.setAttribute('aria-busy', 'true');
  const names = [];
  for (const file of images) {
    const form = new FormData();
    form.append('files', file, 'image');
    const answer = await fetch('/gradio_api/upload', {method: 'POST', body: form}).catch(() => null);
    if (!answer?.ok) { section.removeAttribute('aria-busy'); return say(section.dataset.page, 'The upload did not arrive; try it again in a moment.'); }
    names.push((await answer.json())[0]);
  }
  field.value = [...known, ...names].join(',');
  $('[name="query"]', section).value = 'upload';
  mark(section);
  ask(section, 'search', {uploads: names, reveal: true});
}
root.addEventListener('dragover', (event) => event.preventDefault());
root.addEventListener('drop', (event) => {
  event.preventDefault();
  const files = [...event.dataTransfer.files], section = event.target.closest('section[data-page]');
  if (!files.length) return;
  if (section && $('[data-stage]', section)) stage(files, section);
  else receive(files, open('search', true));
});

// Crops of a new camera go to the server one by one, and wait there.
async function stage(files, section) {
  const value = (name) => $(`[name="${name}"]`, section)?.value.trim() || '';
  const camera = value('new_camera'), category = value('new_category') || $('.reid-drop[data-stage]', section).dataset.stage;
  const line = $('#reid-stage-status', section);
  if (!camera) { line.textContent = 'Write the name of the new camera first, then drop its crops again.'; $('[name="new_camera"]', section).focus(); return; }
  let sent = 0, refused = 0, why = '';
  for (const file of files) {
    line.textContent = `Sending crop ${sent + refused + 1} of ${files.length}…`;
    const address = '/api/cameras/crops?' + new URLSearchParams({camera, category});
    const answer = file.size > MOST_BYTES ? null : await fetch(address, {method: 'POST', body: file}).catch(() => null);
    if (answer?.ok) { sent += 1; continue; }
    refused += 1;
    why ||= (await answer?.json().catch(() => null))?.detail || 'it is larger than 10 MB, or the program does not answer';
    if (answer?.status === 403 || answer?.status === 401) break;
  }
  line.textContent = `${sent} crops were sent.` + (refused ? ` ${refused} were refused: ${why}.` : '');
  ask(section, 'waiting');
}
document.addEventListener('paste', (event) => {
  if (event.clipboardData.files.length) receive([...event.clipboardData.files], open('search', true));
});

function download(section, kind) {
  const rows = section.exported || [];
  if (!rows.length && !(kind === 'html' && section.saved)) return say(section.dataset.page, 'There is nothing to export yet.');
  const quote = (value) => /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
  const safe = (value) => quote(String(value ?? '').replace(/^[=+@\t-](?![\d.])/, "'$&"));
  const lines = !rows.length ? [] : [Object.keys(rows[0]).join(','), ...rows.map((row) => Object.values(row).map(safe).join(','))];
  const save = (blob, name) => {
    const anchor = document.createElement('a');
    anchor.href = URL.createObjectURL(blob);
    anchor.download = name;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 1000);
  };
  if (kind === 'csv') save(new Blob([lines.join('\r\n') + '\r\n'], {type: 'text/csv'}), 'answers.csv');
  else if (kind === 'json') save(new Blob([JSON.stringify(rows, null, 2) + '\n'], {type: 'application/json'}), 'answers.json');
  else if (kind === 'html') save(new Blob([section.saved || ''], {type: 'text/html'}), 'report.html');
  else drawImages(section, save);
}

function drawImages(section, save) {
  const images = all('.reid-query img, .reid-answer img', section), height = 256;
  const widths = images.map((image) => Math.round(height * image.naturalWidth / image.naturalHeight));
  const canvas = document.createElement('canvas');
  canvas.width = widths.reduce((sum, width) => sum + width + 4, 0);
  canvas.height = height;
  const context = canvas.getContext('2d');
  let left = 0;
  images.forEach((image, i) => { context.drawImage(image, left, 0, widths[i], height); left += widths[i] + 4; });
  canvas.toBlob((blob) => save(blob, 'answers.png'));
}

// A box on an image: two corners in pixels of the image, drawn with a pointer or written into four fields.
const corners = ['box_left', 'box_top', 'box_right', 'box_bottom'];
const cornersIn = (image) => corners.map((name) => $(`[name="${name}"]`, image.parentNode));

function markBox(image) {
  const [width, height] = image.dataset.box.split(',').map(Number), mark = $('.reid-box-mark', image);
  const [left, top, right, bottom] = cornersIn(image).map((field) => Number(field.value));
  const share = (from, to, whole) => [Math.min(from, to), Math.abs(to - from)].map((one) => `${100 * Math.min(one / whole, 1)}%`);
  [mark.style.left, mark.style.width] = share(left, right, width);
  [mark.style.top, mark.style.height] = share(top, bottom, height);
}

function pointIn(image, event) {
  const area = image.getBoundingClientRect(), size = image.dataset.box.split(',').map(Number);
  const place = [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height];
  return place.map((share, axis) => Math.round(Math.min(Math.max(share, 0), 1) * size[axis]));
}

root.addEventListener('pointerdown', (event) => {
  const image = event.target.closest('[data-box]');
  if (!image || event.button) return;
  event.preventDefault();
  const fields = cornersIn(image), start = pointIn(image, event);
  const draw = (moved) => {
    [...start, ...pointIn(image, moved)].forEach((value, i) => { fields[i].value = value; });
    markBox(image);
  };
  image.setPointerCapture(event.pointerId);
  image.addEventListener('pointermove', draw);
  for (const name of ['pointerup', 'pointercancel']) {
    image.addEventListener(name, () => image.removeEventListener('pointermove', draw), {once: true});
  }
});
root.addEventListener('input', (event) => {
  if (corners.includes(event.target.name)) markBox($('[data-box]', event.target.closest('.reid-box')));
});
