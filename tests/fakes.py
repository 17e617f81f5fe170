"""Servers on loopback, and a fake endpoint of a language model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server(ThreadingHTTPServer):
    """A server that is at work from the start."""

    daemon_threads = True

    def __init__(self, handler, path=""):
        super().__init__(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}{path}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Answers:
    """What a handler of requests reads and answers."""

    def body(self):
        return self.rfile.read(int(self.headers["Content-Length"]))

    def answer(self, data, status=200, headers=None, length=None):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length or len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Endpoint(Server):
    """Replies with what `replies` says of an article's n-th request."""

    def __init__(self, replies):
        super().__init__(ChatHandler, "/v1")
        self.replies, self.asked, self.seen, self.changes = replies, [], [], {}


def title_of(body):
    """The title of the article that a request is about."""
    return body["messages"][1]["content"].split("####")[2].split("\n")[1]


class ChatHandler(Answers, BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.body())
        title = title_of(body)
        self.server.seen.append((self.headers["Authorization"], body))
        self.server.asked.append(title)
        text = self.server.replies(title, self.server.asked.count(title))
        status = 200 if isinstance(text, str) else text
        found = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": str(text)},
                }
            ],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
        found |= self.server.changes
        if status != 200:
            found = {"error": {"message": f"{self.headers['Authorization']} is not welcome"}}
        self.answer(json.dumps(found).encode(), status)


def question_about(title):
    number = title.split()[-1]
    options = [f"{word} number {number}" for word in ("grass", "mud", "leaves", "bark", "ants")]
    asked = f"What food is taken by the creature that is listed as {title} in book {number * 3}?"
    return json.dumps({"questions": [{"question": asked, "options": options, "answer": 2}]})
