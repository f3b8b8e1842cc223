"""A Dataflow job built in full and staged, and not submitted: exactly what Beam's runner would send.

Nothing here asks Dataflow for anything. Files are staged where `--temp_location` says, in a bucket or, with
STORAGE_EMULATOR_HOST, in an emulator; then no credentials are looked for.
"""

import dataclasses
import json
import os

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, TestOptions

from pipeline.runners.dataflow.graph import Graph, describe
from transforms import storage

REQUEST_LIMIT_BYTES, GRAPH_LIMIT_BYTES = 20 << 20, 10 << 20
"""Of Dataflow: the JSON of a job's request, and a job's graph."""


@dataclasses.dataclass(frozen=True)
class JobRequest:
    """What would be sent.

    Attributes:
      body: the request, as JSON.
      graph: of the pipeline as it was staged.
      staging_location: folder with what workers fetch.
      staged: sizes in bytes of the files there, by name.
    """

    body: str
    graph: Graph
    staging_location: str
    staged: dict[str, int]

    @property
    def job(self) -> dict:
        """The request, parsed."""
        return json.loads(self.body)


def build_request(pipeline: beam.Pipeline) -> JobRequest:
    """Translates and stages a pipeline for Dataflow. Its options name DataflowRunner and have `dry_run` set.

    Raises:
      ValueError: Beam refuses the pipeline or its options.
      OSError: files cannot be staged.
    """
    from apache_beam.runners.dataflow.internal import apiclient
    from google.api_core.exceptions import GoogleAPIError

    job = pipeline.run().job  # of a dry run: translated, neither staged nor sent
    cloud, test = job.options.view_as(GoogleCloudOptions), job.options.view_as(TestOptions)
    storage.OutputFolder(job.root_staging_location).check_writable()  # Beam would try for minutes
    test.dry_run, anonymous = False, cloud.no_auth  # the request is to be the real one
    cloud.no_auth = anonymous or "STORAGE_EMULATOR_HOST" in os.environ
    client = apiclient.DataflowApplicationClient(job.options, job.root_staging_location)
    cloud.no_auth = anonymous
    try:
        client.create_job_description(job)
    except GoogleAPIError as error:
        raise OSError(f"{cloud.staging_location!r}: {error}") from error
    staged = storage.list_tree(cloud.staging_location)
    return JobRequest(job.json(), describe(job.proto_pipeline), cloud.staging_location, staged)
