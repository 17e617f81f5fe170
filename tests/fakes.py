"""A fake endpoint of a language model."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Endpoint(ThreadingHTTPServer):
    """Replies with what `replies` says of an article's n-th request."""

    def __init__(self, replies):
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies, self.asked, self.seen, self.changes = replies, [], [], {}
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][1]["content"]
        title = content.split("####")[2].split("\n")[1]
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
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def question_about(title):
    number = title.split()[-1]
    options = [f"{word} number {number}" for word in ("grass", "mud", "leaves", "bark", "ants")]
    asked = f"What food is taken by the creature that is listed as {title} in book {number * 3}?"
    return json.dumps({"questions": [{"question": asked, "options": options, "answer": 2}]})
