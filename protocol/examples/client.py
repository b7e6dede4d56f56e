#!/usr/bin/env python3
"""A podmesh client in Python with a stock libzmq: lists nodes, submits a job, and watches it.

    client.py [DATA_DIR]            (default: /var/lib/podmesh)

It implements PROTOCOL.md over the manager's local sockets, and needs pyzmq and msgpack
(Debian: python3-zmq, python3-msgpack).
"""

import sys
import uuid

import msgpack
import zmq

PROTOCOL_VERSION = 1
PATIENCE_MS = 30_000


class Manager:
    """Requests and replies over DEALER; events over SUB."""

    def __init__(self, data_dir):
        context = zmq.Context.instance()
        self.control = context.socket(zmq.DEALER)
        self.control.linger = 0
        self.control.connect(f"ipc://{data_dir}/run/control.sock")
        self.publications = context.socket(zmq.SUB)
        self.publications.linger = 0
        self.publications.subscribe(b"events")
        self.publications.connect(f"ipc://{data_dir}/run/publications.sock")
        self.last_id = 0

    def ask(self, body):
        """Sends one request. Returns its result, or raises the manager's error message."""
        self.last_id += 1
        request = {"version": PROTOCOL_VERSION, "id": self.last_id, "body": body}
        self.control.send(msgpack.packb({"request": request}))
        while True:
            message = msgpack.unpackb(receive(self.control)[0])
            reply = message.get("reply")
            if reply is None or reply["id"] != self.last_id:
                continue
            if "Err" in reply["result"]:
                raise RuntimeError(reply["result"]["Err"]["message"])
            return reply["result"]["Ok"]

    def submit(self, name, command, tasks):
        spec = {
            "name": name,
            "array": {"first": 1, "last": tasks},
            "resources": {"cpu_millis": 100, "memory_bytes": 0},
            "run": {"runtime": "process", "command": command},
        }
        # The same id again returns the same job, so a lost reply does not lose the job.
        submission = uuid.uuid4().bytes
        return self.ask({"submit": {"submission": submission, "spec": spec}})["submitted"]["job"]

    def events(self, since):
        """Yields every event after a revision, with its own revision, without end."""
        while True:
            answer = self.ask({"events": {"since": since}})["events"]
            for chunk in answer["chunks"]:
                for number, fact in enumerate(chunk["facts"]):
                    since = chunk["first"] + number
                    yield since, fact
            if since >= answer["last"]:
                # Waits for a publication, which may not contain the events: then request them.
                receive(self.publications)


def receive(socket):
    if not socket.poll(PATIENCE_MS):
        raise TimeoutError("the manager does not respond")
    return socket.recv_multipart()


def main():
    manager = Manager(sys.argv[1] if len(sys.argv) > 1 else "/var/lib/podmesh")
    info = manager.ask("info")["info"]
    print("manager", info["program_version"])
    for node in manager.ask({"nodes": {"limit": 1000}})["nodes"]:
        print("node", node["node"], node["state"])
    job = manager.submit("from-python", ["echo", "hello"], 3)
    print("job", job)
    for _revision, fact in manager.events(info["revision"]):
        if "job_ended" in fact and fact["job_ended"][0] == job:
            print("ended", fact["job_ended"][1])
            return


if __name__ == "__main__":
    main()
