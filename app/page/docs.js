// Show the service's own OpenAPI document; relative, so that it works below a gateway's path as well.
"use strict";

window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    // Its badge would be fetched from another host.
    validatorUrl: null,
  });
});
