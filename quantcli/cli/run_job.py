"""`quantcli run-job`: what `quantcli batch` runs, once for each job."""


def run_job() -> None:
    """Run one job given as a JSON document on stdin; events and the result are lines on stdout."""
    from quantcli.batch.serve import serve

    serve()
