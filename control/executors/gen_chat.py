#!/usr/bin/env python3
"""An executor that asks a model behind an OpenAI-compatible chat completions endpoint: docs/executors/chat_completion.md.

One request for each artifact, and one artifact for each objective. Every answer is judged before anything is written; what is not exactly
as expected is refused. Nothing that the endpoint says, and no value of the settings, is ever printed: either could hold the key.

It needs Python 3.8 and its standard library only.
"""

import contextlib
import email.utils
import errno
import hashlib
import http.client
import ipaddress
import json
import os
import re
import signal
import socket
import ssl
import sys
import time
import urllib.parse

VERSION = "1"
MAX_REQUEST_BYTES = 4 << 20
MAX_ANSWER_BYTES = 16 << 20
SHORTEST_KEY = 8

SYSTEM = (
    "You write one file of a repository. Answer with the content of that file and nothing else: no introduction, no explanation, no code "
    "fence around it. Draw only from what you are given. Where the template is given, follow it as instructions; its placeholders are "
    "yours to fill."
)
SYSTEM_JSON = " The file is one JSON document: strict JSON, no member twice in an object."

# Members that an answer must have, may have, and may have only with nothing in them: these would be something else than text.
ANSWER = (
    {"id", "object", "created", "model", "choices"},
    {"usage", "system_fingerprint", "service_tier", "timings", "prompt_logprobs", "prompt_token_ids", "kv_transfer_params", "provider"},
    set(),
)
CHOICE = (
    {"index", "message", "finish_reason"},
    {"stop_reason", "token_ids", "native_finish_reason", "content_filter_results"},
    {"logprobs"},
)
MESSAGE = (
    {"role", "content"},
    {"reasoning", "reasoning_content", "reasoning_details"},
    {"refusal", "tool_calls", "function_call", "audio", "annotations"},
)
UNFINISHED = {
    "length": "was cut off at the model's limit of length",
    "content_filter": "was withheld by a content filter",
    "tool_calls": "asks for a tool",
    "function_call": "asks for a tool",
}
STATUS = {
    400: "the request is not understood; does the endpoint know the model of CBIA_CHAT_MODEL?",
    401: "the key of CBIA_CHAT_KEY is not accepted",
    403: "the key of CBIA_CHAT_KEY does not allow this",
    404: "there is no such address or model; CBIA_CHAT_ENDPOINT is the whole address, such as https://host/v1/chat/completions",
    413: "the request is too long for it",
}


class Refusal(Exception):
    """Why there is no result."""


class Transient(Exception):
    """Why there is no answer this time; `wait` is how many seconds the endpoint asks for, if it does."""

    def __init__(self, message, wait=None):
        super().__init__(message)
        self.wait = wait


class TimeUp(Exception):
    """The time that was set is over."""


def ring(_signal, _frame):
    raise TimeUp


@contextlib.contextmanager
def at_most(seconds):
    """Raises TimeUp in what takes longer, however slowly it trickles. Rings again, since an exception may be lost in a destructor."""
    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def seconds_setting(name, default, largest):
    text = os.environ.get(name, str(default))
    if not re.fullmatch(r"[0-9]{1,6}", text) or not 1 <= int(text) <= largest:
        raise Refusal("{} must be a whole number from 1 to {}".format(name, largest))
    return int(text)


class Settings:
    """What the environment says."""

    def __init__(self):
        self.read_endpoint(self.needed("CBIA_CHAT_ENDPOINT"))
        self.model = self.needed("CBIA_CHAT_MODEL")
        self.key = os.environ.get("CBIA_CHAT_KEY")
        if self.key is not None and not re.fullmatch("[!-~]{%d,4096}" % SHORTEST_KEY, self.key):
            message = "CBIA_CHAT_KEY must be at least {} printable ASCII characters without spaces; where no key is needed, do not pass it"
            raise Refusal(message.format(SHORTEST_KEY))
        self.request_s = seconds_setting("CBIA_CHAT_REQUEST_S", 120, 86400)
        self.total_s = seconds_setting("CBIA_CHAT_TOTAL_S", 540, 86400)
        self.wait_s = seconds_setting("CBIA_CHAT_WAIT_S", 60, 3600)
        self.attempts = seconds_setting("CBIA_CHAT_ATTEMPTS", 4, 10)

    @staticmethod
    def needed(name):
        value = os.environ.get(name, "")
        if not value:
            raise Refusal("{} is not set: name it in sandbox.pass_env, or give it in env".format(name))
        return value

    def read_endpoint(self, text):
        if not re.fullmatch("[!-~]+", text):
            raise Refusal("CBIA_CHAT_ENDPOINT must be an address in printable ASCII without spaces")
        try:
            parts = urllib.parse.urlsplit(text)
            self.host, self.port = parts.hostname, parts.port
        except ValueError:
            raise Refusal("CBIA_CHAT_ENDPOINT is no address") from None
        if parts.scheme not in ("http", "https") or not self.host:
            raise Refusal("CBIA_CHAT_ENDPOINT must be an address that begins with https://")
        if parts.username is not None or parts.password is not None or parts.fragment:
            raise Refusal("CBIA_CHAT_ENDPOINT must hold no user, password or fragment: the key goes into CBIA_CHAT_KEY")
        self.secure = parts.scheme == "https"
        if not self.secure and self.host != "localhost" and not is_loopback(self.host):
            raise Refusal("CBIA_CHAT_ENDPOINT must begin with https://; http:// is for this machine alone (localhost, 127.0.0.1, [::1])")
        self.target = (parts.path or "/") + ("?" + parts.query if parts.query else "")


def is_loopback(host):
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_without_network():
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM).close()
    except PermissionError:
        raise Refusal("no network is granted to this executor: set \"network\": true in its sandbox") from None


def no_duplicates(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member twice")
    return members


def no_constant(_text):
    raise ValueError("no JSON number")


def short_integer(text):
    if len(text) > 40:
        raise ValueError("a number too long")
    return int(text)


def strict_json(text):
    """The value of a JSON text; ValueError or RecursionError if it is none, or says a member twice."""
    return json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constant, parse_int=short_integer)


def strings(value):
    """Every string in a JSON value, names of members included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            waiting.extend(value)
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def read_text(path):
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return file.read()
    except UnicodeDecodeError:
        raise Refusal("{} is not UTF-8 text, and cannot be put before a model".format(path)) from None
    except OSError as error:
        raise Refusal("{} cannot be read: {}".format(path, error.strerror)) from None


def pretty(value):
    return json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True)


def section(title, text):
    return "{}:\n<<<\n{}{}>>>\n".format(title, text, "" if text.endswith("\n") else "\n")


def messages(request, artifact, objective):
    """What the model is told: a function of the request and the files that it names, and nothing else."""
    authority = objective["source"]["authority_id"]
    digest = request["pre_gen_capsule"]["authority_set_hashes"].get(authority)
    paths = [file["path"] for file in request["inputs_manifest"]["files"] if file["sha256"] == digest]
    if not paths:
        raise Refusal("the text of its authority {} is not among the inputs".format(authority))
    parts = ["File: {}\n".format(artifact["path"]), section("Objective {}".format(objective["id"]), objective["statement"])]
    if objective.get("constraints"):
        parts.append(section("Constraints", pretty(objective["constraints"])))
    parts.append(section("Authority {} ({})".format(authority, paths[0]), read_text(paths[0])))
    if "template" in artifact:
        parts.append(section("Template ({})".format(artifact["template"]), read_text(artifact["template"])))
    system = SYSTEM + (SYSTEM_JSON if artifact["path"].endswith(".json") else "")
    return [{"role": "system", "content": system}, {"role": "user", "content": "\n".join(parts)}]


def patience(header):
    """The seconds that Retry-After asks for; None if it says nothing that can be understood."""
    text = (header or "").strip()
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    try:
        return max(0, int(email.utils.parsedate_to_datetime(text).timestamp() - time.time()) + 1)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


def read_body(response):
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Refusal("the answer is compressed, which was not asked for")
    if response.length is None and not response.chunked:
        raise Refusal("the answer does not say how long it is, so that it may be cut off")
    body, buffer = bytearray(), bytearray(64 << 10)
    while True:
        if max(len(body), response.length or 0) > MAX_ANSWER_BYTES:
            raise Refusal("the answer is larger than {} bytes".format(MAX_ANSWER_BYTES))
        try:
            count = response.readinto(buffer)
        except (http.client.HTTPException, OSError, ValueError):
            raise Refusal("the answer was cut off") from None
        if not count:
            break
        body += buffer[:count]
    if response.length:
        raise Refusal("the answer was cut off")
    return bytes(body)


def connect(settings, seconds):
    if settings.secure:
        context = ssl.create_default_context()
        connection = http.client.HTTPSConnection(settings.host, settings.port, timeout=seconds, context=context)
    else:
        connection = http.client.HTTPConnection(settings.host, settings.port, timeout=seconds)
    try:
        connection.connect()
    except ssl.SSLCertVerificationError as error:
        raise Refusal("the endpoint's certificate is not trusted (OpenSSL's error {})".format(error.verify_code)) from None
    except ssl.SSLError as error:
        raise Refusal("no TLS connection to the endpoint can be made ({})".format(error.reason)) from None
    except socket.gaierror:
        raise Transient("the endpoint's name cannot be resolved") from None
    except OSError as error:
        why = os.strerror(error.errno) if error.errno in errno.errorcode else "no connection"
        raise Transient("the endpoint cannot be reached: {}".format(why)) from None
    if not settings.secure and not is_loopback(connection.sock.getpeername()[0]):
        connection.close()
        raise Refusal("the name in CBIA_CHAT_ENDPOINT is not this machine, and http:// is for this machine alone")
    return connection


def exchange(settings, body, seconds):
    """The bytes of one answer with status 200."""
    headers = {
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Connection": "close",
        "Content-Type": "application/json",
        "User-Agent": "gen_chat/" + VERSION,
    }
    if settings.key is not None:
        headers["Authorization"] = "Bearer " + settings.key
    connection = connect(settings, seconds)
    try:
        try:
            connection.request("POST", settings.target, body, headers)
            response = connection.getresponse()
        except (http.client.RemoteDisconnected, OSError) as error:
            if isinstance(error, socket.timeout):
                raise TimeUp from None
            raise Transient("the endpoint broke the connection off without an answer") from None
        except http.client.HTTPException:
            raise Refusal("the answer is not HTTP") from None
        status = response.status
        if status == 429 or 500 <= status <= 599:
            raise Transient("the endpoint answered with status {}".format(status), patience(response.headers.get("Retry-After")))
        if 300 <= status <= 399:
            message = "the endpoint redirects (status {}), which is refused: CBIA_CHAT_ENDPOINT must be the final address"
            raise Refusal(message.format(status))
        if status != 200:
            raise Refusal("the endpoint answered with status {}: {}".format(status, STATUS.get(status, "only 200 is an answer")))
        if response.headers.get_content_type() != "application/json":
            raise Refusal("the answer's content type is not application/json")
        return read_body(response)
    finally:
        connection.close()


def ask(settings, body, deadline):
    """The answer's bytes. Asks again only if the endpoint is busy, failing or out of reach: what it began to answer may have cost something."""
    for attempt in range(1, settings.attempts + 1):
        seconds = min(settings.request_s, deadline - time.monotonic())
        if seconds <= 0:
            raise Refusal("the time for all requests together is over; CBIA_CHAT_TOTAL_S is {}".format(settings.total_s))
        try:
            with at_most(seconds):
                return exchange(settings, body, seconds)
        except TimeUp:
            message = "no answer within the time: CBIA_CHAT_REQUEST_S is {}, CBIA_CHAT_TOTAL_S is {}"
            raise Refusal(message.format(settings.request_s, settings.total_s)) from None
        except Transient as transient:
            if attempt == settings.attempts:
                raise Refusal("{} (asked {} times)".format(transient, attempt)) from None
            wait = min(2 ** (attempt - 1), settings.wait_s) if transient.wait is None else transient.wait
            if wait > settings.wait_s or time.monotonic() + wait >= deadline:
                message = "{}, and asks for {} s of patience, which is longer than CBIA_CHAT_WAIT_S or CBIA_CHAT_TOTAL_S allows"
                raise Refusal(message.format(transient, wait)) from None
            time.sleep(wait)
    raise Refusal("it was never asked")


def expect_members(what, value, members):
    required, allowed, empty = members
    if not isinstance(value, dict):
        raise Refusal("{} is not an object".format(what))
    for name in sorted(required):
        if name not in value:
            raise Refusal("{} has no {}".format(what, name))
    for name in sorted(value):
        if name not in required | allowed | empty:
            # The key was looked for before; a name in another form is not worth showing.
            shown = name if re.fullmatch("[a-z_]{1,40}", name) else "one with an odd name"
            raise Refusal("{} has a member that is not expected: {}".format(what, shown))
        if name in empty and value[name] not in (None, [], {}):
            raise Refusal("{} has {}, where text alone is expected".format(what, name))


def judge(settings, path, body):
    """The artifact's bytes, from the bytes of an answer."""
    holds_key = Refusal("the answer holds the value of CBIA_CHAT_KEY, and is thrown away")

    def guard(value):
        if settings.key is not None and any(settings.key in text for text in strings(value)):
            raise holds_key

    if settings.key is not None and settings.key.encode("ascii") in body:
        raise holds_key
    try:
        answer = strict_json(body.decode("utf-8"))
    except (ValueError, RecursionError):
        raise Refusal("the answer is not strict JSON in UTF-8, or says a member twice") from None
    guard(answer)
    expect_members("the answer", answer, ANSWER)
    if answer["object"] != "chat.completion":
        raise Refusal("the answer is no chat completion")
    choices = answer["choices"]
    if not isinstance(choices, list) or len(choices) != 1:
        raise Refusal("the answer does not have exactly one choice")
    choice = choices[0]
    expect_members("the answer's choice", choice, CHOICE)
    expect_members("the answer's message", choice["message"], MESSAGE)
    if choice["index"] != 0 or choice["message"]["role"] != "assistant":
        raise Refusal("the answer is not the assistant's first choice")
    reason = choice["finish_reason"]
    if reason != "stop":
        why = UNFINISHED.get(reason) if isinstance(reason, str) else None
        raise Refusal("the answer {} (its finish_reason is not stop)".format(why or "is not finished"))
    content = choice["message"]["content"]
    if not isinstance(content, str) or not content.strip():
        raise Refusal("the answer is empty")
    if content.lstrip().startswith("```"):
        raise Refusal("the answer begins with a code fence, where the file's content alone was asked for")
    if path.endswith(".json"):
        try:
            value = strict_json(content)
        except (ValueError, RecursionError):
            raise Refusal("the answer's content is not strict JSON, which the artifact is to be") from None
        guard(value)
    try:
        data = content.encode("utf-8")
    except UnicodeEncodeError:
        raise Refusal("the answer's content is not valid Unicode") from None
    return data if data.endswith(b"\n") else data + b"\n"


def plan(request):
    """The artifacts, each with its one objective."""
    if request["phase_config"]["phase"] != "GEN":
        raise Refusal("this executor does GEN alone")
    objectives = {objective["id"]: objective for objective in json.loads(read_text("control/objectives.json"))}
    planned, taken = [], {}
    for artifact in request["phase_config"]["artifacts"]:
        path, named = artifact["path"], artifact["objectives"]
        if len(named) != 1:
            raise Refusal("{}: it has {} objectives; this executor makes one artifact per objective".format(path, len(named)))
        if named[0] in taken:
            message = "{}: its objective {} is that of {} too; this executor makes one artifact per objective"
            raise Refusal(message.format(path, named[0], taken[named[0]]))
        if named[0] not in objectives:
            raise Refusal("{}: there is no objective {}".format(path, named[0]))
        taken[named[0]] = path
        planned.append((artifact, objectives[named[0]]))
    return planned


def generate(settings, request):
    deadline = time.monotonic() + settings.total_s
    made = []
    for artifact, objective in plan(request):
        path = artifact["path"]
        try:
            question = {"messages": messages(request, artifact, objective), "model": settings.model, "stream": False, "temperature": 0}
            body = json.dumps(question, sort_keys=True).encode("ascii")
            if len(body) > MAX_REQUEST_BYTES:
                raise Refusal("the request would have {} bytes, and at most {} are sent".format(len(body), MAX_REQUEST_BYTES))
            made.append((path, judge(settings, path, ask(settings, body, deadline))))
        except Refusal as refusal:
            raise Refusal("{}: {}".format(path, refusal)) from None
    return made


def model_shown(settings, request):
    """The model as it was given; its digest if it was passed on like a secret, since the values of those are kept nowhere."""
    sandbox = request["pre_gen_capsule"]["gen_executor"]["config"].get("sandbox") or {}
    if "CBIA_CHAT_MODEL" in sandbox.get("pass_env", []):
        return "sha256:" + hashlib.sha256(settings.model.encode("utf-8", "surrogateescape")).hexdigest()
    return settings.model


def write(path, data):
    folder = os.path.dirname(path)
    if folder:
        os.makedirs(folder, exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def main():
    request = json.loads(read_text(sys.argv[-1]))
    config = request["phase_config"]
    refuse_without_network()
    settings = Settings()
    made = generate(settings, request)
    for path, data in made:
        write(path, data)
    report = {
        "schema_version": request["schema_version"],
        "phase": config["phase"],
        "artifacts": [{"path": path, "hash": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for path, data in made],
        "tool_versions": {"gen_chat": VERSION, "model": model_shown(settings, request)},
    }
    write(config["outputs"]["execution_report"], (json.dumps(report, indent=2, sort_keys=True) + "\n").encode("utf-8"))


if __name__ == "__main__":
    try:
        main()
    except Refusal as refusal:
        print("error: {}".format(refusal), file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # Its text, or a traceback, could hold what must not be shown.
        print("error: unexpected {}".format(type(error).__name__), file=sys.stderr)
        sys.exit(1)
