"""A model zoo in, a shelf of verified GGUF files out: `quantcli batch zoo.toml`.

Read `driver.run` first. A job is one model by one method, a JSON document that a child process of
quantcli runs, under every executor; what it did goes into the ledger before the next thing happens.
"""
