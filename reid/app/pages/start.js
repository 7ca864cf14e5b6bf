// The last part of the script of the page: it begins when all other parts are there.
addEventListener('popstate', readAddress);
$('#reid-dialog').addEventListener('click', (event) => { if (event.target === event.currentTarget) event.currentTarget.close(); });
// Other programs change the gallery while the page is open.
setInterval(() => {
  if (isConnected && document.visibilityState === 'visible') trigger('select', {page: '', action: 'follow', seq: 0, gallery_state: galleryState()});
}, LOOK_AGAIN);
connect();
readAddress();
root.dataset.ready = 'yes';
'select'; // the event that the page sends
