"""What looks like vLLM to a serve job, and misbehaves as told by `--fake`: for cases that the real one is slow to show.

slow: two requests are under way for a second after the first look at /metrics.   hang: stops to answer when ready.
taken: the port is in use at the first start.   mute: never ready.   worker: has a second process that ignores SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--port", type=int)
    parser.add_argument("--host")
    parser.add_argument("--served-model-name")
    parser.add_argument("--fake", default="")
    options, _ = parser.parse_known_args()
    mode, folder = options.fake, Path(options.model)
    first: list[float] = []
    if mode == "taken" and not (folder / "tried").exists():
        (folder / "tried").touch()
        sys.exit("ERROR: [Errno 98] error while attempting to bind: address already in use")
    if mode == "worker":
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(300)"
        worker = subprocess.Popen([sys.executable, "-c", code])
        (folder / "worker").write_text(str(worker.pid))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if mode == "mute" or (mode == "hang" and (folder / "hang").exists()):
                self.send_error(503)
                return
            answer = {"/v1/models": json.dumps({"data": [{"id": options.served_model_name}]})}
            if self.path == "/metrics":
                first.append(time.monotonic())
                busy = 2 if mode == "slow" and time.monotonic() - first[0] < 1 else 0
                answer["/metrics"] = (
                    f'vllm:num_requests_running{{engine="0"}} {busy}.0\nvllm:num_requests_waiting 0.0\n'
                )
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.get(self.path, "").encode())

    print(f"serving as {os.getpid()} with {'a' if os.environ.get('VLLM_API_KEY') else 'no'} key", flush=True)
    ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
