"""Eclipse Paho as a client that is told what to do; the lines are described in ../mqtt_clients.rs."""
import json
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes

how = json.loads(sys.argv[1])
is_v5 = how["version"] == 5
is_websocket = how["transport"] in ("ws", "wss")


def tell(event, **more):
    # In one piece: two threads tell.
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


def sent(order):
    if not is_v5:
        return None
    properties = mqtt.Properties(PacketTypes.PUBLISH)
    wanted = order.get("properties") or {}
    if "user" in wanted:
        properties.UserProperty = [tuple(pair) for pair in wanted["user"]]
    if "response_topic" in wanted:
        properties.ResponseTopic = wanted["response_topic"]
    if "correlation" in wanted:
        properties.CorrelationData = wanted["correlation"].encode()
    if "content_type" in wanted:
        properties.ContentType = wanted["content_type"]
    if "expiry" in wanted:
        properties.MessageExpiryInterval = wanted["expiry"]
    if "alias" in order:
        properties.TopicAlias = order["alias"]
    return properties


def shown(properties):
    correlation = getattr(properties, "CorrelationData", None)
    return {
        "user": getattr(properties, "UserProperty", []),
        "response_topic": getattr(properties, "ResponseTopic", None),
        "correlation": correlation and correlation.decode(),
        "content_type": getattr(properties, "ContentType", None),
        "expiry": getattr(properties, "MessageExpiryInterval", None),
    }


def on_connect(client, data, flags, reason, properties):
    if reason.is_failure:
        sys.exit(f"refused: {reason}")
    tell("connected", session=flags.session_present)


def on_message(client, data, message):
    about = {"properties": shown(message.properties)} if is_v5 else {}
    tell("message", topic=message.topic, payload=message.payload.hex(), qos=message.qos, retain=bool(message.retain), **about)


client = mqtt.Client(
    mqtt.CallbackAPIVersion.VERSION2,
    how["id"],
    protocol=mqtt.MQTTv5 if is_v5 else mqtt.MQTTv311,
    transport="websockets" if is_websocket else "tcp",
    **({} if is_v5 else {"clean_session": how["clean"]}),
)
if is_websocket:
    client.ws_set_options(path="/mqtt")
if how["transport"] in ("tls", "wss"):
    client.tls_set(how["ca"])
if "user" in how:
    client.username_pw_set(how["user"], how["password"])
if how.get("will"):
    will = how["will"]
    client.will_set(will["topic"], bytes.fromhex(will["payload"]), will["qos"], will["retain"])
client.on_connect = on_connect
client.on_message = on_message
client.on_subscribe = lambda client, data, mid, reasons, properties: tell("subscribed", granted=[r.value for r in reasons])
client.on_publish = lambda client, data, mid, reason, properties: tell("published")
start = {}
if is_v5:
    start = {"clean_start": how["clean"], "properties": mqtt.Properties(PacketTypes.CONNECT)}
    start["properties"].SessionExpiryInterval = how.get("expiry", 0)
    start["properties"].TopicAliasMaximum = 10
client.connect(how["host"], how["port"], keepalive=20, **start)
client.loop_start()
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "subscribe":
        client.subscribe(order["filter"], order["qos"])
    elif order["do"] == "publish":
        payload = bytes.fromhex(order["payload"])
        client.publish(order["topic"], payload, order["qos"], order["retain"], sent(order))
        if "alias" in order:
            client.publish("", payload, order["qos"], order["retain"], sent(order))
    elif order["do"] == "leave":
        client.disconnect()
        client.loop_stop()
        break
