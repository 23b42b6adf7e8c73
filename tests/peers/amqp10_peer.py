"""A node of AMQP 1.0 by Qpid Proton, in the place of brokers that are not here: it answers as it is told, takes Azure's
tokens at `$cbs`, and says what it heard.

usage: amqp10_peer.py HOST PORT [accept|reject|release|modify|want-token]
Prints `ready`, then a line of JSON for everything that happens. What it is told holds for the first five messages of
each process; later ones are accepted. `want-token` refuses links to other nodes before a token was put.
"""
import json
import sys

from proton import Delivery, Message
from proton.handlers import MessagingHandler
from proton.reactor import Container

host, port, manner = sys.argv[1], sys.argv[2], (sys.argv[3:] or ["accept"])[0]


def say(event, **about):
    print(json.dumps({"event": event, **about}), flush=True)


class Peer(MessagingHandler):
    def __init__(self):
        super().__init__(prefetch=50, auto_accept=False, auto_settle=True)
        self.seen = 0
        self.has_token = manner != "want-token"
        self.replies = None

    def on_start(self, event):
        self.listener = event.container.listen(f"{host}:{port}")
        print("ready", flush=True)

    def on_connection_opening(self, event):
        transport = event.transport
        say("opened", mechanism=transport.sasl().mech, container=event.connection.remote_container,
            hostname=event.connection.remote_hostname)

    def on_link_opening(self, event):
        link = event.link
        node = link.remote_source.address if link.is_sender else link.remote_target.address
        if node != "$cbs" and not self.has_token:
            say("refused", node=node)
            link.close()
            return
        link.source.copy(link.remote_source)
        link.target.copy(link.remote_target)
        if link.is_sender and node == "$cbs":
            self.replies = link
        say("attached", node=node, settled=link.remote_snd_settle_mode == link.SND_SETTLED)

    def on_message(self, event):
        message = event.message
        if event.link.target.address == "$cbs":
            self.has_token = True
            about = message.properties or {}
            say("token", operation=about.get("operation"), type=about.get("type"), name=about.get("name"),
                token=message.body)
            event.delivery.update(Delivery.ACCEPTED)
            self.replies.send(Message(correlation_id=message.id, properties={
                "status-code": 202, "status-description": "Accepted"}))
            return
        self.seen += 1
        say("message", id=message.id, subject=message.subject, durable=message.durable,
            content_type=str(message.content_type), settled=event.delivery.settled,
            properties={key: value for key, value in (message.properties or {}).items()},
            body=bytes(message.body).decode())
        if event.delivery.settled:
            return
        outcomes = {"reject": Delivery.REJECTED, "release": Delivery.RELEASED, "modify": Delivery.MODIFIED}
        outcome = outcomes.get(manner, Delivery.ACCEPTED) if self.seen <= 5 else Delivery.ACCEPTED
        say("outcome", id=message.id, outcome=str(outcome))
        event.delivery.update(outcome)


Container(Peer()).run()
