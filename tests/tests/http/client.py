"""Submits a job with the generated client: folder of the package, address, token."""

import sys

sys.path.insert(0, sys.argv[1])

from client import AuthenticatedClient
from client.api.jobs import show_job, submit_job
from client.models import JobInput, JobSpecInput

with AuthenticatedClient(base_url=sys.argv[2], token=sys.argv[3]) as api:
    new = JobInput(name="generated", spec=JobSpecInput(command=["true"]))
    job = submit_job.sync(client=api, body=new, idempotency_key="one")
    again = submit_job.sync(client=api, body=new, idempotency_key="one")
    assert job.job == again.job, (job, again)
    view = show_job.sync(job.job, client=api)
    print(f"job {view.job} {view.name} {view.tasks.total}")
