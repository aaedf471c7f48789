"""Small applications, each of which uses a library at import as its users do.

Rules:

* ``answer(number)`` in an application's text returns what request ``number`` is answered: with and without preloading
  the same. What is drawn or counted by one worker alone is in the answer by a property that has to hold in both.
* ``HTTP``, ``REDIS`` and ``GRPC`` in a text are the addresses of servers that the test runs.
* Where an import leaves something open, ``found`` is a part of what the master says of it.
"""

from __future__ import annotations

from typing import NamedTuple

UVICORN, THREAD, GEVENT = "zdworker.UvicornWorker", "zdworker.ThreadWorker", "zdworker.GeventWorker"

WSGI = """
def app(environ, start_response):
    body = answer(environ["PATH_INFO"].strip("/")).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""
ASGI = """
async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = answer(scope["path"].strip("/"))
    body = (body if isinstance(body, str) else await body).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""


class StandIn(NamedTuple):
    """One application.

    :param library: what it is for, as the documentation names it.
    :param does: what it does at import.
    :param code: its text, before the application object.
    :param found: a part of why it is not preloaded, empty if it is.
    :param shown: what the documentation says of it, if not that.
    :param server: the text that makes an application object of ``answer``, empty where ``code`` has one.
    :param private: answers of two workers have to differ: each has its own of something.
    """

    library: str
    does: str
    code: str
    found: str = ""
    server: str = WSGI
    worker_class: str = THREAD
    private: bool = False
    shown: str = ""

    def row(self) -> str:
        """Return its row in docs/fork-safety.md."""
        imported = f"by each worker | {self.shown or self.found}" if self.found else "once | -"
        return f"| {self.library} | {self.does} | {imported} |"


STAND_INS = (
    StandIn(
        "Django, WSGI",
        "the template of `startproject`, and a query whose connection is closed",
        """
import os, subprocess, sys
if not os.path.exists("mysite"):
    subprocess.run([sys.executable, "-m", "django", "startproject", "mysite", "."], capture_output=True)
os.environ["DJANGO_SETTINGS_MODULE"] = "mysite.settings"
os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
import mysite.settings
mysite.settings.ALLOWED_HOSTS = ["*"]
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
app = get_wsgi_application()
import mysite.urls
mysite.urls.urlpatterns.append(path("<int:number>", lambda request, number: HttpResponse(str(number + 1))))
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("select 1")
connection.close()
""",
        server="",
    ),
    StandIn(
        "Django, WSGI, a query",
        "a query at import whose connection stays open",
        """
import os
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": "db.sqlite3"}},
                   ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
app = get_wsgi_application()
from django.db import connection
def query(request, number):
    with connection.cursor() as cursor:
        cursor.execute("select %s + 1", [number])
        return HttpResponse(str(cursor.fetchone()[0]))
urlpatterns = [path("<int:number>", query)]
connection.ensure_connection()
""",
        server="",
        found="db.sqlite3",
        shown="the database, a file that is open for writing",
    ),
    StandIn(
        "Django, ASGI",
        "a minimal project",
        """
import os
from django.conf import settings
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x")
from django.core.asgi import get_asgi_application
from django.http import HttpResponse
from django.urls import path
app = get_asgi_application()
async def show(request, number):
    return HttpResponse(str(number + 1))
urlpatterns = [path("<int:number>", show)]
""",
        server="",
        worker_class=UVICORN,
    ),
    StandIn(
        "Flask",
        "an application with a template and a logger",
        """
import logging
from flask import Flask, render_template_string
logging.basicConfig(filename="app.log", level=logging.INFO)
app = Flask(__name__)
@app.get("/<int:number>")
def show(number):
    app.logger.info("number %s", number)
    return render_template_string("{{ number + 1 }}", number=number)
""",
        server="",
    ),
    StandIn(
        "Flask on gevent",
        "the same, in the GeventWorker",
        """
from flask import Flask, render_template_string
app = Flask(__name__)
@app.get("/<int:number>")
def show(number):
    import gevent
    gevent.sleep(0.001)
    return render_template_string("{{ number + 1 }}", number=number)
""",
        server="",
        worker_class=GEVENT,
    ),
    StandIn(
        "gevent",
        "a greenlet that is spawned at import",
        """
import gevent
seen = []
def refresh():
    while True:
        seen.append(1)
        gevent.sleep(0.01)
gevent.spawn(refresh)
def answer(number):
    gevent.sleep(0.05)
    return str(len(seen) > 1)
""",
        worker_class=GEVENT,
        found="Greenlet",
        shown="a greenlet",
    ),
    StandIn(
        "FastAPI",
        "models, a dependency, an endpoint in a thread",
        """
from fastapi import Depends, FastAPI
from pydantic import BaseModel
class Answer(BaseModel):
    value: int
def one():
    return 1
app = FastAPI()
@app.get("/{number}")
def show(number: int, step: int = Depends(one)) -> Answer:
    return Answer(value=number + step)
""",
        server="",
        worker_class=UVICORN,
    ),
    StandIn(
        "Starlette",
        "routes and middleware",
        """
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
async def show(request):
    return PlainTextResponse(str(int(request.path_params["number"]) + 1))
app = Starlette(routes=[Route("/{number}", show)], middleware=[Middleware(GZipMiddleware)])
""",
        server="",
        worker_class=UVICORN,
    ),
    StandIn(
        "SQLAlchemy",
        "an engine with a pool, without a connection",
        """
from sqlalchemy import create_engine, text
engine = create_engine("sqlite:///data.sqlite", pool_size=5)
def answer(number):
    with engine.connect() as connection:
        return str(connection.execute(text(f"select {number} + 1")).scalar())
""",
    ),
    StandIn(
        "SQLAlchemy, a query",
        "a query at import, whose connection stays in the pool",
        """
from sqlalchemy import create_engine, text
engine = create_engine("sqlite:///data.sqlite", pool_size=5)
with engine.begin() as connection:
    connection.execute(text("create table if not exists one (two)"))
def answer(number):
    with engine.begin() as connection:
        connection.execute(text(f"insert into one values ({number})"))
        return str(connection.execute(text(f"select max(two) >= {number} from one")).scalar())
""",
        found="data.sqlite",
        shown="the database, a file that is open for writing",
    ),
    StandIn(
        "redis",
        "a client, which connects at its first command",
        """
import redis
client = redis.Redis(host=REDIS[0], port=REDIS[1], protocol=2)
def answer(number):
    client.set(f"key {number}", number)
    return client.get(f"key {number}").decode()
""",
    ),
    StandIn(
        "redis, a command",
        "a command at import, whose connection stays in the pool",
        """
import redis
client = redis.Redis(host=REDIS[0], port=REDIS[1], protocol=2)
client.set("started", 1)
def answer(number):
    client.set(f"key {number}", number)
    return client.get(f"key {number}").decode()
""",
        found="connections at import (127.0.0.1:",
        shown="a connection",
    ),
    StandIn(
        "pymongo",
        "a `MongoClient`, which starts threads that look for its servers",
        """
import pymongo
client = pymongo.MongoClient("127.0.0.1", 9, serverSelectionTimeoutMS=20)
def answer(number):
    try:
        return str(client.admin.command("ping"))
    except pymongo.errors.ServerSelectionTimeoutError:
        return "no server"
""",
        found="threads at import (",
        shown="threads",
    ),
    StandIn(
        "boto3",
        "a client of S3",
        """
import boto3
client = boto3.client("s3", endpoint_url=HTTP, region_name="eu-west-1", aws_access_key_id="x",
                      aws_secret_access_key="y")
def answer(number):
    return client.get_object(Bucket="bucket", Key=number)["Body"].read().decode()
""",
    ),
    StandIn(
        "grpcio",
        "a channel, and a stub on it",
        """
import grpc
channel = grpc.insecure_channel(GRPC)
echo = channel.unary_unary("/echo/echo")
def answer(number):
    return echo(number.encode(), timeout=5).decode()
""",
        found="(event_engine, ",
        shown="threads of a C library",
    ),
    StandIn(
        "grpcio, a call",
        "a channel that was used at import",
        """
import grpc
channel = grpc.insecure_channel(GRPC)
echo = channel.unary_unary("/echo/echo")
echo(b"started", timeout=5)
def answer(number):
    return echo(number.encode(), timeout=5).decode()
""",
        found="at import (",
        shown="threads of a C library",
    ),
    StandIn(
        "sentry-sdk",
        "`sentry_sdk.init`",
        """
import sentry_sdk
sentry_sdk.init(dsn=HTTP.replace("http://", "http://key@") + "/1", traces_sample_rate=1.0)
def answer(number):
    with sentry_sdk.start_transaction(name="request"):
        return str(len(sentry_sdk.capture_message(f"request {number}")))
""",
    ),
    StandIn(
        "OpenTelemetry",
        "a `BatchSpanProcessor`, which is a thread",
        """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
exported = []
class Exporter(SpanExporter):
    def export(self, spans):
        exported.extend(spans)
        return SpanExportResult.SUCCESS
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(Exporter(), schedule_delay_millis=10))
trace.set_tracer_provider(provider)
tracer = trace.get_tracer("app")
def answer(number):
    with tracer.start_as_current_span("request"):
        pass
    provider.force_flush(2000)
    return str(len(exported) > 0)
""",
        found="threads at import (Otel",
        shown="a thread",
    ),
    StandIn(
        "Celery",
        "an application with tasks: a client",
        """
from celery import Celery
celery = Celery("app", broker="memory://", backend="cache+memory://")
@celery.task
def add(a, b):
    return a + b
def answer(number):
    return str(len(add.delay(1, 2).id))
""",
    ),
    StandIn(
        "httpx",
        "an `AsyncClient`",
        """
import httpx
client = httpx.AsyncClient(base_url=HTTP)
async def answer(number):
    return (await client.get(f"/{number}")).text
""",
        server=ASGI,
        worker_class=UVICORN,
    ),
    StandIn(
        "aiohttp",
        "a session in an event loop that was made for it",
        """
import asyncio, aiohttp
loop = asyncio.new_event_loop()
async def make():
    return aiohttp.ClientSession(HTTP)
session = loop.run_until_complete(make())
def answer(number):
    async def get():
        async with session.get(f"/{number}") as response:
            return await response.text()
    return loop.run_until_complete(get())
""",
        worker_class="zdworker.WSGIWorker",
        found="event loop",
        shown="an event loop",
    ),
    StandIn(
        "requests",
        "a `Session` that was used at import",
        """
import requests
session = requests.Session()
session.get(f"{HTTP}/started")
def answer(number):
    return session.get(f"{HTTP}/{number}").text
""",
        found="connections at import (127.0.0.1:",
        shown="a connection",
    ),
    StandIn(
        "numpy",
        "arrays; OpenBLAS starts threads, numpy's global generator is seeded",
        """
import threading, numpy
numbers = numpy.arange(250_000.0).reshape(500, 500)
product = numbers @ numbers
drawn, lock = [], threading.Lock()
def answer(number):
    assert (numbers @ numbers == product).all()
    with lock:
        if not drawn:
            drawn.append(numpy.random.random())
    return str(drawn[0])
""",
        private=True,
    ),
    StandIn(
        "numpy, a generator",
        "`default_rng()` at import",
        """
import threading, numpy
rng = numpy.random.default_rng()
drawn, lock = [], threading.Lock()
def answer(number):
    with lock:
        if not drawn:
            drawn.append(rng.random())
    return str(drawn[0])
""",
        private=True,
        found="(Generator)",
        shown="a generator",
    ),
    StandIn(
        "numpy, a seed",
        "`numpy.random.seed(1)` at import",
        """
import threading, numpy
numpy.random.seed(1)
drawn, lock = [], threading.Lock()
def answer(number):
    with lock:
        if not drawn:
            drawn.append(numpy.random.random())
    return str(drawn[0])
""",
        found="(RandomState)",
        shown="a generator with a seed",
    ),
    StandIn(
        "pandas",
        "a table that is only read",
        """
import pandas
table = pandas.DataFrame({"a": range(1000), "b": range(1000)})
def answer(number):
    return str(table.groupby("b").sum().loc[int(number), "a"])
""",
    ),
    StandIn(
        "prometheus_client",
        "counters in one process's memory",
        """
import prometheus_client
requests = prometheus_client.Counter("requests", "requests")
def answer(number):
    requests.inc()
    return str(b"requests_total" in prometheus_client.generate_latest())
""",
    ),
    StandIn(
        "prometheus_client, multiprocess",
        "counters and gauges in mapped files",
        """
import os
os.environ["PROMETHEUS_MULTIPROC_DIR"] = "metrics"
os.makedirs("metrics", exist_ok=True)
import prometheus_client
from prometheus_client import multiprocess
least = prometheus_client.Gauge("least", "least", multiprocess_mode="livemin")
least.set(7)
def answer(number):
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    lines = prometheus_client.generate_latest(registry).decode().splitlines()
    return next(line for line in lines if line.startswith("least "))
""",
        found="memory at import that all workers would share (",
        shown="shared memory",
    ),
    StandIn(
        "structlog",
        "a logger that writes to a file",
        """
import logging, structlog
logging.basicConfig(filename="app.log", level=logging.INFO)
structlog.configure(logger_factory=structlog.stdlib.LoggerFactory())
log = structlog.get_logger()
def answer(number):
    log.info("request", number=number)
    return number
""",
    ),
    StandIn(
        "APScheduler",
        "a scheduler that is started",
        """
import time
from apscheduler.schedulers.background import BackgroundScheduler
seen = []
scheduler = BackgroundScheduler()
scheduler.add_job(lambda: seen.append(1), "interval", seconds=0.05)
scheduler.start()
def answer(number):
    until = time.monotonic() + 5
    while not seen and time.monotonic() < until:
        time.sleep(0.01)
    return str(len(seen) > 0)
""",
        found="threads at import (APScheduler)",
        shown="a thread",
    ),
    StandIn(
        "psycopg_pool",
        "a pool that is opened",
        """
from psycopg_pool import ConnectionPool, PoolTimeout
pool = ConnectionPool("host=127.0.0.1 port=9", open=True, min_size=1, reconnect_timeout=1000)
def answer(number):
    try:
        with pool.connection(timeout=0.05):
            return "connected"
    except PoolTimeout:
        return "no server"
""",
        found="threads at import (",
        shown="threads",
    ),
    StandIn(
        "confluent-kafka",
        "a producer: threads of a C library",
        """
from confluent_kafka import Producer
producer = Producer({"bootstrap.servers": "127.0.0.1:9", "log_level": 0})
def answer(number):
    producer.produce("topic", number)
    return str(len(producer) > 0)
""",
        found="a library of the application started threads",
        shown="threads of a C library",
    ),
    StandIn(
        "polars",
        "a table, grouped at import: threads of its own pool",
        """
import polars
table = polars.DataFrame({"a": range(1000), "b": range(1000)})
sums = table.group_by("b").sum()
def answer(number):
    return str(table.group_by("b").sum().filter(polars.col("b") == int(number))["a"][0])
""",
        found="a library of the application started threads",
        shown="threads of a C library",
    ),
    StandIn(
        "pyarrow",
        "a table that is only read",
        """
import pyarrow, pyarrow.compute
table = pyarrow.table({"a": range(1000)})
def answer(number):
    return str(pyarrow.compute.sum(table["a"]).as_py() + int(number))
""",
    ),
    StandIn(
        "scikit-learn",
        "a model that was fitted at import",
        """
import threading, numpy
from sklearn.linear_model import LinearRegression
model = LinearRegression().fit(numpy.arange(100.0).reshape(-1, 1), numpy.arange(100.0) * 2)
def answer(number):
    return f"{model.predict(numpy.array([[float(number)]]))[0]:.3f}"
""",
    ),
    StandIn(
        "datadog",
        "a client of statsd, used at import",
        """
from datadog import DogStatsd
statsd = DogStatsd(host="127.0.0.1", port=9)
statsd.increment("started")
def answer(number):
    statsd.increment("requests")
    return number
""",
    ),
    StandIn(
        "Pillow, Jinja2, cryptography",
        "an image, templates, a key",
        """
import jinja2
from cryptography.fernet import Fernet
from PIL import Image
image = Image.new("RGB", (100, 100), "red")
template = jinja2.Environment(loader=jinja2.DictLoader({"a": "{{ n }} {{ size }}"})).get_template("a")
fernet = Fernet(b"0" * 43 + b"=")
def answer(number):
    size = image.resize((int(number) + 1, 2)).size
    return fernet.decrypt(fernet.encrypt(template.render(n=number, size=size).encode())).decode()
""",
    ),
)
