"""Publishes one persistent, confirmed message for each number of a range.

usage: amqp_publish.py HOST PORT EXCHANGE FIRST LAST
"""
import json
import sys

import pika

host, port, exchange, first, last = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]), int(sys.argv[5])
connection = pika.BlockingConnection(pika.ConnectionParameters(host, port))
channel = connection.channel()
channel.confirm_delivery()
for seq in range(first, last + 1):
    body = json.dumps([{"n": "c%d" % (seq % 3), "v": 1, "gw": "barn", "epoch": "b", "seq": seq}])
    properties = pika.BasicProperties(delivery_mode=2, message_id="barn/b/%d" % seq)
    channel.basic_publish(exchange, "barn.c", body, properties, mandatory=True)
connection.close()
