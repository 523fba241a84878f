// A UDP echo server on a usernet stack, in JavaScript: docs/app-protocol.md in about a hundred lines.
//
//     npm install && node echo.js [PORT]        (in this folder, with a stack running; default port 7)

"use strict";

const fs = require("fs");
const os = require("os");
const path = require("path");
const { randomBytes } = require("crypto");
const zmq = require("zeromq");

const SEND = 1, DATAGRAM = 2, HELLO = 128, RESUME = 129, REQUEST = 130, REPLY = 131, CREDIT = 132, REFUSAL = 135;
const VERSION = 2, HEADER = 24, DATAGRAM_HEADER = 20, OVERHEAD = 256;
const CREDIT_BATCH = 100_000; // octets; less than half of the default receive buffer
const JOURNAL_FRAMES = 512;
const GONE_CHECK_MS = 500;
const CREDIT_TOTAL = 0x80000000;

function runDir() {
  if (process.env.USERNET_DIR) return process.env.USERNET_DIR;
  const name = process.env.USERNET_NAME || "default";
  const runtime = process.env.XDG_RUNTIME_DIR;
  const base = runtime ? path.join(runtime, "usernet") : path.join(os.tmpdir(), `usernet-${process.getuid()}`);
  return path.join(base, name);
}

class Client {
  constructor(dir) {
    this.dir = dir;
    this.id = 0n; // assigned by the service
    this.inboxName = `app-${(randomBytes(8).readBigUInt64LE() | 1n).toString(16)}.sock`;
    this.inbox = new zmq.Pull({ receiveHighWaterMark: 0 });
    this.outbox = new zmq.Push({ linger: 0, sendHighWaterMark: 64, reconnectInterval: 1, reconnectMaxInterval: 5 });
    this.sequence = 0; // of the last frame sent
    this.journal = []; // [sequence, frame], to repeat after a restart of the service
    this.done = 0; // last processed frame of the service
    this.incarnation = 0;
    this.awaiting = true; // a repetition is announced
    this.requests = new Map(); // id -> {record, resolve, reject} of unanswered requests
    this.lastRequest = 0;
    this.queue = Promise.resolve(); // zeromq.js permits one send at a time
  }

  async start() {
    const inboxPath = path.join(this.dir, "sockets", this.inboxName);
    await this.inbox.bind(`ipc://${inboxPath}`);
    setInterval(() => { // the stack's end removes our inbox
      if (!fs.existsSync(inboxPath)) {
        console.error("echo: the stack is gone");
        process.exit(1);
      }
    }, GONE_CHECK_MS);
    this.outbox.connect(`ipc://${path.join(this.dir, "sockets.sock")}`);
    const hello = () => this.greet(HELLO, { version: VERSION, inbox: this.inboxName, done: this.done });
    const again = setInterval(hello, 500);
    hello();
    await new Promise((resolve, reject) => {
      this.welcomed = (welcome) => { this.welcome = welcome; clearInterval(again); resolve(); };
      this.refused = (refusal) => { clearInterval(again); reject(new Error(refusal.error)); };
      this.receive().catch(reject);
    });
  }

  // -- sending

  pack(kind, sequence, record) {
    const head = Buffer.alloc(HEADER + 4);
    head.writeUInt8(VERSION, 0);
    head.writeUInt8(kind, 1);
    head.writeUInt16LE(1, 2); // one record
    head.writeUInt32LE(1, 4); // our incarnation
    head.writeBigUInt64LE(this.id, 8);
    head.writeBigUInt64LE(BigInt(sequence), 16);
    head.writeUInt32LE(record.length, HEADER);
    return Buffer.concat([head, record]);
  }

  push(frame) {
    this.queue = this.queue.then(() => this.outbox.send(frame));
  }

  send(kind, record) {
    const frame = this.pack(kind, ++this.sequence, record);
    this.journal.push([this.sequence, frame]);
    if (this.journal.length > JOURNAL_FRAMES) this.journal.shift();
    this.push(frame);
  }

  greet(kind, fields) {
    this.push(this.pack(kind, 0, Buffer.from(JSON.stringify(fields))));
  }

  request(op, fields) {
    const id = ++this.lastRequest;
    const record = Buffer.from(JSON.stringify({ id, op, ...fields }));
    return new Promise((resolve, reject) => {
      this.requests.set(id, { record, resolve, reject });
      this.send(REQUEST, record);
    });
  }

  // -- receiving

  async receive() {
    for await (const [frame] of this.inbox) {
      const kind = frame.readUInt8(1), count = frame.readUInt16LE(2), incarnation = frame.readUInt32LE(4);
      const sequence = Number(frame.readBigUInt64LE(16));
      const records = [];
      for (let n = 0, at = HEADER + 4 * count; n < count; n++) {
        const length = frame.readUInt32LE(HEADER + 4 * n);
        records.push(frame.subarray(at, at + length));
        at += length;
      }
      if (this.id === 0n && kind === REFUSAL) this.refused(JSON.parse(records[0]));
      if (this.id === 0n) this.id = frame.readBigUInt64LE(8);
      if (this.id !== frame.readBigUInt64LE(8)) continue; // not the service's
      if (sequence === 0) this.greeted(kind, incarnation, JSON.parse(records[0]));
      else if (this.accept(incarnation, sequence)) this.take(kind, records);
    }
  }

  accept(incarnation, sequence) {
    if (incarnation !== this.incarnation || sequence <= this.done) return false;
    if (sequence > this.done + 1 && this.awaiting) return false;
    this.done = sequence;
    return true;
  }

  greeted(kind, incarnation, fields) {
    if (incarnation < this.incarnation) return;
    if (kind === RESUME) {
      this.awaiting = false;
      this.done = Math.max(this.done, fields.first - 1);
    } else if (kind === HELLO) {
      this.awaiting ||= incarnation > this.incarnation;
      this.incarnation = incarnation;
      const again = this.journal.filter(([sequence]) => sequence > fields.done);
      this.greet(RESUME, { first: again.length ? again[0][0] : this.sequence + 1, done: this.done });
      again.forEach(([, frame]) => this.push(frame));
      this.requests.forEach(({ record }) => this.send(REQUEST, record));
      this.welcomed(fields);
    }
  }

  take(kind, records) {
    for (const record of records) {
      if (kind === DATAGRAM) {
        this.onDatagram(record);
      } else if (kind === REPLY) {
        const reply = JSON.parse(record);
        const request = this.requests.get(reply.id);
        if (!request) continue;
        this.requests.delete(reply.id);
        if (reply.errno) request.reject(new Error(errorName(reply.errno)));
        else request.resolve(reply);
      } else if (kind === CREDIT) {
        this.credit(record.readUInt32LE(0), CREDIT_TOTAL); // nothing waits here: each datagram is answered at once
      }
    }
  }

  credit(handle, octets) {
    const record = Buffer.alloc(8);
    record.writeUInt32LE(handle, 0);
    record.writeUInt32LE(octets, 4);
    this.send(CREDIT, record);
  }
}

function errorName(number) {
  return Object.keys(os.constants.errno).find((name) => os.constants.errno[name] === number) || `errno ${number}`;
}

async function main() {
  const dir = runDir();
  if (!fs.existsSync(path.join(dir, "sockets.sock"))) {
    throw new Error(`no usernet stack is running (looked in ${dir}); start one with: launcher.py up --detach`);
  }
  const client = new Client(dir);
  const prepared = new Set(); // destinations that the service has been asked about
  let handle = 0, consumed = 0;
  client.onDatagram = async (record) => {
    consumed += record.length - DATAGRAM_HEADER + OVERHEAD;
    if (consumed >= CREDIT_BATCH) {
      client.credit(handle, consumed);
      consumed = 0;
    }
    const [address, port] = [record.subarray(12, 16).join("."), record.readUInt16LE(8)];
    const peer = `${address}:${port}`;
    if (!prepared.has(peer)) {
      try {
        await client.request("prepare", { handle, address, port });
      } catch (error) {
        console.error(`cannot answer ${peer}: ${error.message}`);
        return;
      }
      if (prepared.size >= 1024) prepared.clear();
      prepared.add(peer);
    }
    const answer = Buffer.from(record); // its head contains the destination and source of the answer
    answer.fill(0, 5, 8); // flags, TTL, TOS: the socket's
    client.send(SEND, answer);
  };
  await client.start();
  ({ handle } = await client.request("socket", { type: "dgram" }));
  const name = await client.request("bind", { handle, address: "0.0.0.0", port: Number(process.argv[2] || 7) });
  console.log(`echoing at ${client.welcome.address}:${name.port}`);
}

main().catch((error) => {
  console.error(`echo: ${error.message}`);
  process.exit(1);
});
