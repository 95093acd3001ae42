// The site's search runs in a worker, which browsers refuse to a page that was opened from disk. There an invisible
// frame stands in for it: same events, same messages. The search script looks for the name IFrameWorker.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = frame.contentDocument.createElement("script");
      script.src = url;
      this.loaded = new Promise((resolve, reject) => {
        script.addEventListener("load", resolve);
        script.addEventListener("error", () => reject(new Error(`${url} cannot be loaded`)));
      });
      frame.contentDocument.body.append(script);
    }

    postMessage(data) {
      this.loaded.then(
        () => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })),
        (error) => this.dispatchEvent(new ErrorEvent("error", { error })),
      );
    }
  };
  window.Worker = window.IFrameWorker;
}
