/** What the library of page types lacks: names of workers. */

declare function importScripts(...urls: string[]): void;
declare const registration: ServiceWorkerRegistration;
declare const clients: { claim(): Promise<void> };

interface Window {
  FILES: { version: string; digests: Record<string, string>; headers: Record<string, string> };
}
