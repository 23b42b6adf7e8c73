"""mosquitto_sub and mosquitto_pub as a client that is told what to do; the lines are described in ../mqtt_clients.rs.

A subscription is one mosquitto_sub, which connects only now, with the id, the session and the will; a message is one
mosquitto_pub.
"""
import json
import subprocess
import sys
import threading

how = json.loads(sys.argv[1])
is_v5 = how["version"] == 5
where = ["-h", how["host"], "-p", str(how["port"]), "-V", "mqttv5" if is_v5 else "mqttv311"]
if how["transport"] == "tls":
    where += ["--cafile", how["ca"]]
if "user" in how:
    where += ["-u", how["user"], "-P", how["password"]]


def tell(event, **more):
    # In one piece: two threads tell.
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


def session():
    words = ["-i", how["id"]]
    if not how["clean"]:
        words += ["-c"]
    if is_v5:
        words += ["-x", str(how.get("expiry", 0)), "-D", "connect", "topic-alias-maximum", "10"]
    if how.get("will"):
        will = how["will"]
        words += ["--will-topic", will["topic"], "--will-payload", bytes.fromhex(will["payload"]).decode()]
        words += ["--will-qos", str(will["qos"])] + (["--will-retain"] if will["retain"] else [])
    return words


def subscribe(order):
    # Into a pipe it would speak only at its end. `-d` prints the grant.
    words = ["stdbuf", "-oL", "mosquitto_sub", *where, *session(), "-d", "-F", "message %x %j"]
    child = subprocess.Popen([*words, "-t", order["filter"], "-q", str(order["qos"])], stdout=subprocess.PIPE, text=True)
    threading.Thread(target=follow, args=(child,), daemon=True).start()
    return child


def follow(child):
    for line in child.stdout:
        if line.startswith("Subscribed"):
            tell("subscribed", granted=[int(code) for code in line.split(": ")[-1].split(",")])
        elif line.startswith("message "):
            _, payload, rest = line.split(" ", 2)
            # An empty payload leaves no word.
            if payload.startswith("{"):
                payload, rest = "", line.split(" ", 1)[1]
            seen(payload, json.loads(rest, object_pairs_hook=list))


def seen(payload, pairs):
    about = dict(pairs)
    properties = dict(about.get("properties", []))
    more = {
        "user": properties.get("user-properties", []),
        "response_topic": properties.get("response-topic"),
        "correlation": properties.get("correlation-data"),
        "content_type": properties.get("content-type"),
        "expiry": properties.get("message-expiry-interval"),
    }
    more = {"properties": more} if is_v5 else {}
    tell("message", topic=about["topic"], payload=payload, qos=about["qos"], retain=about["retain"] == 1, **more)


def publish(order):
    words = ["mosquitto_pub", *where, "-t", order["topic"], "-q", str(order["qos"]), "-s"]
    payload = bytes.fromhex(order["payload"])
    if not payload:
        words[-1] = "-n"
    if order["retain"]:
        words += ["-r"]
    if is_v5:
        properties = order.get("properties") or {}
        for name, value in properties.get("user", []):
            words += ["-D", "publish", "user-property", name, value]
        names = {"response_topic": "response-topic", "correlation": "correlation-data", "content_type": "content-type"}
        for name, option in {**names, "expiry": "message-expiry-interval"}.items():
            if name in properties:
                words += ["-D", "publish", option, str(properties[name])]
        if "alias" in order:
            words += ["-D", "publish", "topic-alias", str(order["alias"]), "--repeat", "2"]
    done = subprocess.run(words, input=payload, capture_output=True)
    for _ in range(2 if "alias" in order else 1):
        if done.returncode == 0:
            tell("published")
        else:
            tell("failed", why=done.stderr.decode())


subscriber = None
tell("connected", session=None)
for line in sys.stdin:
    order = json.loads(line)
    if order["do"] == "subscribe":
        subscriber = subscribe(order)
    elif order["do"] == "publish":
        publish(order)
    elif order["do"] == "leave":
        if subscriber:
            subscriber.terminate()
            try:
                subscriber.wait(2)
            except subprocess.TimeoutExpired:
                # Its signal handler takes a lock that what it interrupts may hold.
                subscriber.kill()
        break
