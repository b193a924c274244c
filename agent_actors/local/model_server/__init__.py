"""A model server that answers as vLLM does, with a simulation in place of a model.

It says that it is simulated wherever a reader may look: the model's name, the version, the log.

Read in the order of a request: `serving` starts and stops it, `app` has the routes,
`chat` is the way of one request, `validation` reads and refuses, `script` or `simulation`
decides what to say, `generation` turns that into tokens, `engine` gives them their time, `turn`
puts them into the shapes of `wire`, and `answer` writes them, whole or as a stream, or goes wrong
on purpose in one of the ways of `faults`.

Besides vLLM's own endpoints there are some for tests and demos:

- `GET /simulated/requests?last=20`: how many requests came, how often each task and each
  conversation was asked, and the last bodies.
- `GET /simulated/faults`: pace and faults as they are now.
- `POST /simulated/faults`: change them while the server runs. Every key is optional and
  replaces its part of the behaviour whole:
  `{"faults": {"rates": {"429": 0.1, "hang": 0.01}, "retry_after_s": 1},
  "latency": {"first_token_ms": 200}, "healthy": false}`.

With an API key these need it too. Tests in the same process use
`serving.running_model_server(settings)`: its `requests` are the very same record.
"""
