// Lets httpyac read answers under the names of VS Code's REST Client, {{created.response.body.$.id}}, so that one file
// serves both. No other client reads this file.
module.exports = {
  configureHooks(api) {
    api.hooks.onResponse.addHook('rest-client-names', (response) => {
      const body = response.parsedBody;
      if (body && typeof body === 'object') {
        Object.defineProperty(body, 'response', { value: { body: { $: body }, headers: response.headers } });
      }
    });
  },
};
