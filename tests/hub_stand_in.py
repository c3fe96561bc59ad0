"""A stand-in of the Hub's HTTP interface on this machine."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_of_the_test"


class StandIn(ThreadingHTTPServer):
    """Repositories in memory: branches of files, LFS objects apart, as the Hub keeps them."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), StandInHandler)
        self.branches: dict[str, dict[str, dict[str, bytes]]] = {}
        self.visibility: dict[str, str | None] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.gated: set[str] = set()
        self.cut_off: set[str] = set()  # files whose first transfer ends in the middle

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class StandInHandler(BaseHTTPRequestHandler):
    server: StandIn

    def log_message(self, *args):
        pass

    def answer(self, status: int, content=None, headers=None, body: bytes | None = None):
        body = json.dumps({} if content is None else content).encode() if body is None else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str):
        self.answer(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def do_GET(self):  # noqa: N802 - the name http.server calls
        found = re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<branch>[^/]+)/(?P<path>.+)", self.path)
        begin = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        self.server.requests.append(f"{self.command} {self.path}" + (f" from {begin}" if begin else ""))
        if found and found["repo"] in self.server.gated:
            self.refuse(403, "GatedRepo")
            return
        if not found or found["repo"] not in self.server.branches:
            self.refuse(404, "RepoNotFound" if found else "EntryNotFound")
            return
        files = self.server.branches[found["repo"]]
        files = files.get(found["branch"]) or next(iter(files.values()))  # by the commit: of the only branch
        if found["path"] not in files:
            self.refuse(404, "EntryNotFound")
            return
        body = files[found["path"]]
        headers = {"X-Repo-Commit": "c" * 40, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(body) - 1}/{len(body)}"
        if self.command == "GET" and found["path"] in self.server.cut_off:
            self.server.cut_off.remove(found["path"])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
            return
        self.answer(206 if begin else 200, None, headers, body[begin:])

    do_HEAD = do_GET  # noqa: N815

    def do_PUT(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer(200)

    def do_POST(self):  # noqa: N802
        self.server.requests.append(f"{self.command} {self.path}")
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.refuse(401, "Unauthorized")
        elif self.path == "/api/repos/create":
            wanted = json.loads(body)
            repo = f"{wanted.get('organization') or 'user'}/{wanted['name']}"
            known = repo in self.server.branches
            self.server.branches.setdefault(repo, {"main": {}})
            self.server.visibility.setdefault(repo, wanted.get("visibility"))
            self.answer(409 if known else 200, {"url": f"{self.server.endpoint}/{repo}", "id": repo})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/(.+)", self.path):
            self.server.branches[found[1]].setdefault(found[2], {})
            self.answer(200)
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", self.path):
            modes = []
            for path in (file["path"] for file in json.loads(body)["files"]):
                mode = "lfs" if path.endswith(".safetensors") else "regular"
                modes.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": None})
            self.answer(200, {"files": modes})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = [
                entry | {"actions": {"upload": {"href": f"{self.server.endpoint}/lfs/{entry['oid']}"}}}
                for entry in json.loads(body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/(.+)", self.path):
            files = self.server.branches[found[1]][found[2]]
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
            url = f"{self.server.endpoint}/{found[1]}/commit/{'c' * 40}"
            self.answer(200, {"success": True, "commitOid": "c" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self.refuse(404, "EntryNotFound")


def environment(hub: StandIn, folder: Path, token: str = TOKEN) -> dict[str, str]:
    """Of a user of this Hub: online, with a token and a cache."""
    return {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_TOKEN": token,
        "HF_HOME": str(folder / "hf_home"),
        "HF_HUB_DISABLE_XET": "1",  # the stand-in takes large files by Git LFS alone
    }
