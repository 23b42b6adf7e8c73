"""What the tests ask of RabbitMQ over AMQP 0-9-1, with pika.

usage: rabbitmq.py HOST PORT declare QUEUE TYPE
           declares a durable queue (classic, quorum or stream)
       rabbitmq.py HOST PORT drain QUEUE FILE [stream]
           writes every message that is in a queue, or in a stream from its beginning, to FILE as a line of JSON, and
           ends when nothing has come for three seconds; takes messages out of a queue, but not out of a stream
       rabbitmq.py HOST PORT ask EXCHANGE KEY BODY [PROPERTY=VALUE…]
           publishes one message and prints the answer to it, if `reply_to=yes` asks for one
"""
import base64
import json
import sys
import time

import pika

host, port, verb, *arguments = sys.argv[1:]
connection = pika.BlockingConnection(pika.ConnectionParameters(host, int(port), heartbeat=600))
channel = connection.channel()


def declare(queue, kind):
    channel.queue_declare(queue, durable=True, arguments={"x-queue-type": kind})


def line(method, properties, body):
    try:
        payload = {"payload": body.decode("utf-8")}
    except UnicodeDecodeError:
        payload = {"base64": base64.b64encode(body).decode()}
    headers = {
        key: value for key, value in (properties.headers or {}).items() if isinstance(value, (str, int, float, bool))
    }
    return json.dumps({
        "topic": method.routing_key,
        "id": properties.message_id,
        "headers": headers,
        "content_type": properties.content_type,
        "content_encoding": properties.content_encoding,
        "persistent": properties.delivery_mode == 2,
        **payload,
    })


def drain(queue, path, kind="queue"):
    is_stream = kind == "stream"
    channel.basic_qos(prefetch_count=2000)
    consume = {"arguments": {"x-stream-offset": "first"}} if is_stream else {}
    with open(path, "w", encoding="utf-8") as file:
        unacknowledged, last = 0, None
        for method, properties, body in channel.consume(queue, inactivity_timeout=3, **consume):
            if method is None:
                break
            file.write(line(method, properties, body) + "\n")
            unacknowledged, last = unacknowledged + 1, method.delivery_tag
            if unacknowledged == 500:
                channel.basic_ack(last, multiple=True)
                unacknowledged = 0
        if unacknowledged:
            file.flush()
            channel.basic_ack(last, multiple=True)
    channel.cancel()


def ask(exchange, key, body, *pairs):
    properties = dict(pair.split("=", 1) for pair in pairs)
    headers = {name[2:]: properties.pop(name) for name in list(properties) if name.startswith("h.")}
    if "timestamp" in properties:
        properties["timestamp"] = int(properties["timestamp"])
    answers = []
    if properties.pop("reply_to", None):
        own = channel.queue_declare("", exclusive=True).method.queue
        channel.basic_consume(own, lambda _c, _m, about, text: answers.append((about.correlation_id, text)), True)
        properties["reply_to"] = own
    about = pika.BasicProperties(headers=headers or None, **properties)
    channel.basic_publish(exchange, key, body.encode(), about)
    deadline = time.monotonic() + 15
    while "reply_to" in properties and not answers and time.monotonic() < deadline:
        connection.process_data_events(0.2)
    for correlation, text in answers:
        print(json.dumps({"correlation": correlation, "body": text.decode()}))


{"declare": declare, "drain": drain, "ask": ask}[verb](*arguments)
connection.close()
