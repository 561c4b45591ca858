// What every page can use: its numbers, and a frame that is as high as it needs to be.
const page = (() => {
  const held = JSON.parse(document.getElementById("held").textContent);
  const bytes = async (name) => {
    const packed = Uint8Array.from(atob(held.arrays[name]), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const fit = () => {
    try {
      if (window.frameElement) window.frameElement.style.height = document.documentElement.offsetHeight + 4 + "px";
    } catch (refused) { /* a viewer that keeps frames apart shows the first height */ }
  };
  const ready = () => { fit(); document.documentElement.dataset.ready = "yes"; };
  window.addEventListener("resize", fit);
  return { data: held.data, bytes, fit, ready };
})();
