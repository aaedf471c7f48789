"""The application that every contender serves, in each language, with what its import does.

Rules:

* One behaviour: ``/`` answers at once, ``/busy`` holds its worker for 50 ms, ``/sleep`` answers after ``seconds``,
  ``/echo`` tells the SHA-256 of the body. Each answer is JSON and names its version and process.
* A WebSocket at ``/ws`` answers each message with the same two facts, where the language's standard library or the
  server brings WebSockets.
* Faulty code starts well and answers every fifth request for ``/`` with 500.
* A deploy is one ``rename(2)``, so that no server ever sees half a file.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["asgi", "wsgi", "tornado", "node", "rack"]
Work = Literal["trivial", "light", "import", "large", "broken", "faulty"]
"""What the import does: nothing; a fifth of a second or a second of processor time; that and 150 MB; it raises; a
second of processor time, and every fifth answer is a 500."""

PYTHON = """\
import hashlib, itertools, json, os, time
VERSION = "@VERSION@"
FAULTY = False
@WORK@
requests = itertools.count(1)


def status(path):
    return 500 if FAULTY and path == "/" and next(requests) % 5 == 0 else 200


def facts(**more):
    return json.dumps({"version": VERSION, "pid": os.getpid(), **more}).encode()


def seconds(path, query):
    return 0.05 if path == "/busy" else float(query.partition("seconds=")[2] or 0)

"""
ASGI = """
import asyncio


async def app(scope, receive, send):
    if scope["type"] == "websocket":
        await websocket(receive, send)
    elif scope["type"] == "http":
        await http(scope, receive, send)


async def http(scope, receive, send):
    path, more = scope["path"], {}
    if path == "/busy":
        time.sleep(0.05)
    elif path == "/sleep":
        await asyncio.sleep(seconds(path, scope["query_string"].decode()))
    elif path == "/echo":
        body, message = b"", {"more_body": True}
        while message.get("more_body"):
            message = await receive()
            body += message.get("body", b"")
        more = {"digest": hashlib.sha256(body).hexdigest()}
    body = facts(**more)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status(path), "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def websocket(receive, send):
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": facts().decode()})
"""
WSGI = """

def app(environ, start_response):
    path, more = environ["PATH_INFO"], {}
    if path in ("/busy", "/sleep"):
        time.sleep(seconds(path, environ["QUERY_STRING"]))
    elif path == "/echo":
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        more = {"digest": hashlib.sha256(body).hexdigest()}
    body = facts(**more)
    start_response(f"{status(path)} -", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
"""
TORNADO = """
import asyncio
import tornado.web, tornado.websocket


class Page(tornado.web.RequestHandler):
    async def get(self):
        if self.request.path == "/busy":
            time.sleep(0.05)
        elif self.request.path == "/sleep":
            await asyncio.sleep(seconds("/sleep", self.request.query))
        self.set_status(status(self.request.path))
        self.finish(facts())

    def post(self):
        self.finish(facts(digest=hashlib.sha256(self.request.body).hexdigest()))


class Socket(tornado.websocket.WebSocketHandler):
    def on_message(self, message):
        self.write_message(facts())


app = tornado.web.Application([("/ws", Socket), (".*", Page)])
"""
NODE = """\
const crypto = require('crypto'), http = require('http');
const VERSION = '@VERSION@';
let leaving = false, faulty = false, requests = 0;
@WORK@

function answer(response, more, status = 200) {
  const body = JSON.stringify({ version: VERSION, pid: process.pid, ...more });
  const head = { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) };
  response.writeHead(status, leaving ? { ...head, connection: 'close' } : head);
  response.end(body);
}

const server = http.createServer((request, response) => {
  const [path, query] = request.url.split('?');
  if (path === '/echo') {
    const hash = crypto.createHash('sha256');
    request.on('data', piece => hash.update(piece));
    request.on('end', () => answer(response, { digest: hash.digest('hex') }));
  } else if (path === '/sleep') {
    setTimeout(() => answer(response), 1000 * Number(query.split('=')[1]));
  } else {
    if (path === '/busy') for (const end = Date.now() + 50; Date.now() < end;);
    answer(response, {}, faulty && path === '/' && ++requests % 5 === 0 ? 500 : 200);
  }
});

if (process.env.KEEPALIVE) server.keepAliveTimeout = 1000 * Number(process.env.KEEPALIVE);

// PM2, "Graceful start" and "Graceful stop": tell when ready, end when the last answer is out.
server.listen(Number(process.env.PORT), '127.0.0.1', () => { if (process.send) process.send('ready'); });
// A cluster's worker is disconnected. Who keeps a connection is told to make another one.
function leave() {
  leaving = true;
  server.close(() => process.exit(0));
}
process.on('SIGINT', leave);
process.on('disconnect', leave);
"""
RACK = """\
require 'digest'
require 'json'
VERSION = '@VERSION@'
$faulty, $requests = false, 0
@WORK@

run lambda { |env|
  more = {}
  case env['PATH_INFO']
  when '/busy' then sleep 0.05
  when '/sleep' then sleep env['QUERY_STRING'].split('=')[1].to_f
  when '/echo' then more = { digest: Digest::SHA256.hexdigest(env['rack.input'].read) }
  end
  body = JSON.generate({ version: VERSION, pid: Process.pid }.merge(more))
  failed = $faulty && env['PATH_INFO'] == '/' && ($requests += 1) % 5 == 0
  [failed ? 500 : 200, { 'Content-Type' => 'application/json', 'Content-Length' => body.bytesize.to_s }, [body]]
}
"""

BURN = "_until = time.process_time() + 1.0\nwhile time.process_time() < _until:\n    sum(range(1000))"
BURN_NODE = """\
const begin = process.cpuUsage();
for (let spent = begin; spent.user + spent.system < 1e6;) {
  for (let number = 0, sum = 0; number < 1e6; number++) sum += number;
  spent = process.cpuUsage(begin);
}"""
CLOCK = "Process.clock_gettime(Process::CLOCK_PROCESS_CPUTIME_ID)"
BURN_RACK = f"til = {CLOCK} + 1.0\nnil while {CLOCK} < til"


@dataclass(frozen=True)
class Language:
    """How a kind of application is written: its file, its text, and what an import may do."""

    file: str
    text: str
    works: dict[Work, str]


_PYTHON: dict[Work, str] = {
    "trivial": "",
    "light": BURN.replace("1.0", "0.2"),
    "import": BURN,
    "large": f"{BURN}\nheld = [[number] for number in range(1_450_000)]",
    "broken": 'raise RuntimeError("a broken deploy")',
    "faulty": f"{BURN}\nFAULTY = True",
}
_NODE: dict[Work, str] = {
    "trivial": "",
    "import": BURN_NODE,
    "large": f"{BURN_NODE}\nglobal.held = Array.from({{ length: 3000000 }}, (_, number) => [number]);",
    "broken": "throw new Error('a broken deploy');",
    "faulty": f"{BURN_NODE}\nfaulty = true;",
}
_RACK: dict[Work, str] = {
    "trivial": "",
    "import": BURN_RACK,
    "large": f"{BURN_RACK}\nHELD = Array.new(3_000_000) {{ |number| [number] }}",
    "broken": "raise 'a broken deploy'",
    "faulty": f"{BURN_RACK}\n$faulty = true",
}
LANGUAGES: dict[Kind, Language] = {
    "asgi": Language("application.py", PYTHON + ASGI, _PYTHON),
    "wsgi": Language("application.py", PYTHON + WSGI, _PYTHON),
    "tornado": Language("application.py", PYTHON + TORNADO, _PYTHON),
    "node": Language("application.js", NODE, _NODE),
    "rack": Language("config.ru", RACK, _RACK),
}


def write(directory: Path, kind: Kind, version: str, work: Work) -> None:
    """Put a version of the application in place, in one moment, without bytecode of the one before."""
    language = LANGUAGES[kind]
    text = language.text.replace("@VERSION@", version).replace("@WORK@", language.works[work])
    fresh = directory / f"{language.file}.new"
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(directory / language.file)
    shutil.rmtree(directory / "__pycache__", ignore_errors=True)
