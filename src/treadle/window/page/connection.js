// The line to the server, which is taken up again whenever it breaks.

const FIRST_WAIT = 500;
const LONGEST_WAIT = 4000;
/** The server's answer where there is no such run, any longer. */
const GONE = 1008;

export class Connection {
  /** `onMessage(message)`, `onChange(connected)`: called with false at every loss, with true when words come again. A
   * run that is gone is not asked for again. */
  constructor(path, onMessage, onChange) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.url = `${scheme}://${location.host}${path}`;
    this.onMessage = onMessage;
    this.onChange = onChange;
    this.wait = FIRST_WAIT;
    this.open();
  }

  open() {
    const socket = new WebSocket(this.url);
    this.socket = socket;
    socket.addEventListener("message", (event) => {
      this.wait = FIRST_WAIT;
      this.onChange(true);
      this.onMessage(JSON.parse(event.data));
    });
    socket.addEventListener("close", ({ code }) => {
      this.onChange(false);
      if (code === GONE) return;
      setTimeout(() => this.open(), this.wait);
      this.wait = Math.min(2 * this.wait, LONGEST_WAIT);
    });
  }

  send(message) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }
}
