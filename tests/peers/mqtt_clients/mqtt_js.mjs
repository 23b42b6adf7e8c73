// mqtt.js as a client that is told what to do; the lines are described in ../mqtt_clients.rs.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";

const mqtt = createRequire(new URL("../../.node/", import.meta.url))("mqtt");
const how = JSON.parse(process.argv[2]);
const isV5 = how.version === 5;
const tell = (event, more = {}) => console.log(JSON.stringify({ event, ...more }));

function sent(order) {
  if (!isV5) return undefined;
  const wanted = order.properties ?? {};
  const properties = {};
  if (wanted.user) {
    properties.userProperties = {};
    for (const [name, value] of wanted.user) (properties.userProperties[name] ??= []).push(value);
  }
  if (wanted.response_topic) properties.responseTopic = wanted.response_topic;
  if (wanted.correlation) properties.correlationData = Buffer.from(wanted.correlation);
  if (wanted.content_type) properties.contentType = wanted.content_type;
  if (wanted.expiry) properties.messageExpiryInterval = wanted.expiry;
  if (order.alias) properties.topicAlias = order.alias;
  return properties;
}

function shown(properties = {}) {
  const pairs = Object.entries(properties.userProperties ?? {});
  return {
    user: pairs.flatMap(([name, values]) => [values].flat().map((value) => [name, value])),
    response_topic: properties.responseTopic,
    correlation: properties.correlationData?.toString(),
    content_type: properties.contentType,
    expiry: properties.messageExpiryInterval,
  };
}

const scheme = { tcp: "mqtt", tls: "mqtts", ws: "ws", wss: "wss" }[how.transport];
const path = how.transport.startsWith("ws") ? "/mqtt" : "";
const will = how.will && { ...how.will, payload: Buffer.from(how.will.payload, "hex") };
const client = mqtt.connect(`${scheme}://${how.host}:${how.port}${path}`, {
  clientId: how.id,
  protocolVersion: isV5 ? 5 : 4,
  clean: how.clean,
  keepalive: 20,
  reconnectPeriod: 0,
  ca: how.ca && readFileSync(how.ca),
  username: how.user,
  password: how.password,
  will,
  properties: isV5 ? { sessionExpiryInterval: how.expiry ?? 0, topicAliasMaximum: 10 } : undefined,
});
client.on("error", (error) => {
  console.error(error);
  process.exit(1);
});
client.on("message", (topic, payload, packet) => {
  const about = isV5 ? { properties: shown(packet.properties) } : {};
  tell("message", { topic, payload: payload.toString("hex"), qos: packet.qos, retain: packet.retain, ...about });
});
const done = (error) => (error ? tell("failed", { why: String(error) }) : tell("published"));
client.on("connect", (answer) => {
  tell("connected", { session: answer.sessionPresent });
  createInterface({ input: process.stdin }).on("line", (line) => {
    const order = JSON.parse(line);
    if (order.do === "subscribe") {
      client.subscribe(order.filter, { qos: order.qos }, (error, granted) =>
        error ? tell("failed", { why: String(error) }) : tell("subscribed", { granted: granted.map(({ qos }) => qos) }),
      );
    } else if (order.do === "publish") {
      const payload = Buffer.from(order.payload, "hex");
      const options = () => ({ qos: order.qos, retain: order.retain, properties: sent(order) });
      client.publish(order.topic, payload, options(), done);
      if (order.alias) client.publish("", payload, options(), done);
    } else if (order.do === "leave") {
      client.end(false, () => process.exit(0));
    }
  });
});
