"""Consumes a binding of an exchange from now on and prints how late each `ping:NANOSECONDS:` in a message is.

usage: amqp_live.py HOST PORT BINDING
Prints `ready` when the queue is bound, then `late MILLISECONDS` a ping.
"""
import re
import sys
import time

import pika

host, port, binding = sys.argv[1], int(sys.argv[2]), sys.argv[3]
connection = pika.BlockingConnection(pika.ConnectionParameters(host, port, heartbeat=60))
channel = connection.channel()
channel.exchange_declare("tidegate", "topic", durable=True)
queue = channel.queue_declare("", exclusive=True).method.queue
channel.queue_bind(queue, "tidegate", binding)


def on_message(channel, method, properties, body):
    now = time.time_ns()
    for then in re.findall(rb"ping:(\d+):", body):
        print(f"late {(now - int(then)) / 1e6:.3f}")


channel.basic_consume(queue, on_message, auto_ack=True)
print("ready")
channel.start_consuming()
